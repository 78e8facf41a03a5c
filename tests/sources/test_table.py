"""Tables: columns, row errors, and manifests that are broken in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.media.open import local_path
from pipeline.records import schema
from pipeline.sources import manifest as manifest_module
from pipeline.sources.listing import SourcesConfig, list_sources
from pipeline.stage import Row, UserError


def rows_of(path: Path, **options: str) -> list[Row]:
    rows = list_sources([str(path)], SourcesConfig(**options)).rows  # type: ignore[arg-type]
    pa.Table.from_pylist(rows, schema("sources"))
    for row in rows:
        json.loads(row["meta"], parse_constant=pytest.fail)
    return rows


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(rows: list[Row]) -> dict[str, str | None]:
    return {row["source_key"].partition("/")[2]: row["problem"] for row in rows}


def test_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "clips.csv", 'id,path,title,empty\nx,a.mp4,"A ""b"", c",\ny,/abs/b.mp4,"two\nlines",\n')
    one, two = rows_of(path)
    assert one == {
        "source_key": "clips.csv/x",
        "dataset": "clips",
        "uri": str(tmp_path / "a.mp4"),
        "given_id": "x",
        "meta": '{"title": "A \\"b\\", c"}',
        "stamp": None,
        "problem": None,
        "problem_detail": None,
    }
    assert two["uri"] == "/abs/b.mp4"
    assert json.loads(two["meta"]) == {"title": "two\nlines"}


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"video": "a.mp4", "video_id": "x", "tags": ["p", {"q": 1}], "none": None},
        {"video": "b.mp4", "video_id": 7},
    ]
    two, one = rows_of(written(tmp_path, "c.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, lines))))
    assert (one["given_id"], two["given_id"]) == ("x", "7")
    assert json.loads(one["meta"]) == {"tags": ["p", {"q": 1}]}


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "Video_ID": pa.array(["x", "y", None]).dictionary_encode(),
            "File": pa.array([b"a.mp4", b"\xff.mp4", b"c.mp4"]).view(pa.string()),
            "score": [0.5, float("nan"), 1.0],
            "when": pa.array([0, 1, 2], pa.timestamp("s")),
            "video": [{"bytes": b"0" * 100}] * 3,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    rows = rows_of(tmp_path / "t.parquet")
    assert problems(rows) == {"x": None, "y": None, "c.mp4": "bad_id"}
    by_id = {row["given_id"]: row for row in rows}
    assert local_path(by_id["y"]["uri"]) == f"{tmp_path}/\udcff.mp4"
    assert json.loads(by_id["x"]["meta"]) == {"score": 0.5, "when": "1970-01-01 00:00:00"}
    assert json.loads(by_id["y"]["meta"])["score"] is None


@pytest.mark.parametrize("column", ["uri", "url", "path", "video", "file", "video_path", "Path", " URI "])
def test_the_media_column_is_found_by_name(tmp_path: Path, column: str) -> None:
    (row,) = rows_of(written(tmp_path, "t.csv", f"note,{column}\nn,a.mp4\n"))
    assert (row["source_key"], row["given_id"], row["uri"]) == ("t.csv/a.mp4", None, str(tmp_path / "a.mp4"))


def test_columns_and_media_root_may_be_configured(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "path,clip,name\nwrong.mp4,right.mp4,n1\n")
    (row,) = rows_of(path, uri_column="clip", id_column="name", media_root="s3://bucket/dir")
    assert (row["uri"], row["given_id"]) == ("s3://bucket/dir/right.mp4", "n1")
    assert json.loads(row["meta"]) == {"path": "wrong.mp4"}
    for option in ("uri_column", "id_column"):
        with pytest.raises(UserError, match=rf"no column 'other' \(sources.{option}\); it has path, clip, name"):
            rows_of(path, **{option: "other"})
    with pytest.raises(UserError, match="no column names the media"):
        rows_of(written(tmp_path, "u.csv", "a,b\n1,2\n"))


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    lines = [
        "id,uri",
        "ok,a.mp4",
        "../../x,b.mp4",
        ",c.mp4",
        "no_path,",
        "scheme,ftp://host/a.mp4",
        "secret,https://u:p@host/a.mp4",
        "a b,d.mp4",
        "short",
        "long,e.mp4,more",
        "",
        "last,f.mp4",
        f"{'i' * 129},g.mp4",
        f"name300,{'n' * 300}.mp4",
    ]
    rows = rows_of(written(tmp_path, "t.csv", "\n".join(lines)))
    assert problems(rows) == {
        "ok": None,
        "../../x": "bad_id",
        "c.mp4": "bad_id",
        "no_path": "missing",
        "scheme": "missing",
        "secret": "missing",
        "a b": "bad_id",
        ":9": "bad_row",
        ":10": "bad_row",
        "last": None,
        "i" * 129: "bad_id",
        "name300": None,
    }
    details = {row["source_key"]: row["problem_detail"] for row in rows}
    assert details["t.csv/:9"] == "line 9: 1 fields, the header has 2"
    assert details["t.csv/no_path"] == "the row has nothing in column 'uri'"
    assert "'../../x' is not an id" in str(details["t.csv/../../x"])
    assert all(row["given_id"] is None for row in rows if row["problem"] in ("bad_id", "bad_row"))


def test_a_quote_never_closed_costs_its_own_line_only(tmp_path: Path) -> None:
    many = "".join(f"b{i}.mp4,t\n" for i in range(1000))
    rows = rows_of(written(tmp_path, "t.csv", f'path,title\na.mp4,"open\n{many}c.mp4,"x"y"\nd.mp4,"never closed\n'))
    found = problems(rows)
    assert len(found) == 1003
    assert {key: problem for key, problem in found.items() if problem} == dict.fromkeys(
        (":2", ":1003", ":1004"), "bad_row"
    )


def test_lines_and_fields_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_field = "x" * 200_000  # over the csv module's own default limit
    (row,) = rows_of(written(tmp_path, "t.csv", f"path,note,n\na.mp4,{long_field},1\n"))
    assert json.loads(row["meta"]) == {"n": "1", "_left_out": ["note"]}
    monkeypatch.setattr(manifest_module, "MAX_RECORD_CHARS", 1000)
    for name, line in (("u.csv", "b.mp4,{}\n"), ("u.jsonl", '{{"path": "b.mp4", "n": "{}"}}\n')):
        head = "path,n\n" if name == "u.csv" else ""
        content = head + line.format("short") + line.format(long_field).replace("b.mp4", "c.mp4") + line.format("s2")
        rows = rows_of(written(tmp_path, name, content))
        number = 3 if head else 2
        assert problems(rows) == {"b.mp4": None, f":{number}": "bad_row", "b.mp4 #2": None}


def test_jsonl_lines_that_cannot_be_used(tmp_path: Path) -> None:
    good: dict[str, Any] = {"path": "a.mp4", "id": "a"}
    lines: list[bytes] = [
        json.dumps(good).encode(),
        b'{"path": "b.mp4", "id": ',
        b"[1, 2]",
        b'{"path": "\xff.mp4", "id": "d"}',
        b'{"path": 5, "id": "e"}',
        b'{"id": "f"}',
        b'{"path": "g.mp4", "id": 1.0}',
        b'{"path": "h.mp4", "id": true}',
        b'{"path": "i\\ud800.mp4", "id": "i"}',
        b'{"path": "j.mp4", "id": "j", "deep": ' + b"[" * 600 + b"]" * 600 + b"}",
        b"[" * 100_000,
        b'{"path": "k\\u0000.mp4", "id": "k", "note": "\\udcff", "nan": NaN}',
        b'{"path": "l\\n.mp4", "id": "l"}',
    ]
    rows = rows_of(written(tmp_path, "t.jsonl", b"\n".join(lines)))
    assert problems(rows) == {
        "a": None,
        ":2": "bad_row",
        ":3": "bad_row",
        ":4": "bad_row",
        "e": "bad_row",
        "f": "missing",
        "g.mp4": "bad_id",
        "h.mp4": "bad_id",
        "i": "missing",
        "j": None,
        ":11": "bad_row",
        "k": "missing",
        "l": None,
    }


def test_encodings(tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path, "bom.csv", b"\xef\xbb\xbfpath,id\na.mp4,x\n"))
    assert row["given_id"] == "x"
    bad, latin = rows_of(
        written(tmp_path, "latin.csv", "path,id,note\ncaf\u00e9.mp4,x,\u00e9\nb.mp4,\u00e9,\n".encode("latin-1"))
    )
    assert local_path(latin["uri"]) == f"{tmp_path}/caf\udce9.mp4"
    assert json.loads(latin["meta"]) == {"note": "\\udce9"}
    assert bad["problem"] == "bad_id"
    for name in ("utf16.csv", "utf16.jsonl"):
        with pytest.raises(UserError, match="UTF-16; save it as UTF-8"):
            rows_of(written(tmp_path, name, "path\na.mp4\n".encode("utf-16")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,id,path\na,b,c\n", "names column 'path' twice"),
        ("t.csv", b'"path,id\na,b\n', "header line cannot be read"),
        ("t.csv", b"\npath\na\n", "starts with an empty line"),
        ("t.jsonl", b'[{"path": "a"},\n{"path": "b"}]\n', r"hold no JSON object; line 1: not JSON"),
        ("t.parquet", b"PAR1 not really", "not a Parquet file"),
        ("t.parquet", b"", "not a Parquet file"),
    ],
)
def test_a_manifest_that_is_none_is_the_users_mistake(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(written(tmp_path, name, content))


def test_a_signature_in_a_url_stays_out_of_the_key(tmp_path: Path) -> None:
    url = "https://host/a.mp4?sig=secret"
    (row,) = rows_of(written(tmp_path, "t.csv", f"url\n{url}\n"))
    assert row["uri"] == url
    assert row["source_key"].startswith("t.csv/https://host/a.mp4?")
    assert "secret" not in row["source_key"]


def test_adding_rows_keeps_the_keys_of_others(tmp_path: Path) -> None:
    before = rows_of(written(tmp_path, "t.csv", "path\nb.mp4\nc.mp4\n"))
    after = rows_of(written(tmp_path, "t.csv", "path\na.mp4\nc.mp4\nb.mp4\n"))
    assert [row for row in after if row["source_key"] != "t.csv/a.mp4"] == before


def test_the_shared_manifest_is_a_table(shared_videos: Path) -> None:
    rows = rows_of(shared_videos / "MANIFEST.csv")
    assert len(rows) == 44
    assert all(Path(row["uri"]).is_file() for row in rows)
