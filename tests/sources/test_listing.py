"""What holds for every adapter: order, sampling, keys, recognition."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from pathlib import Path

import pytest

from pipeline.sources.listing import Listing, SourcesConfig, list_sources
from pipeline.stage import UserError

FIXTURES = Path(__file__).parent.parent / "fixtures"


def listed(*inputs: Path, limit: int | None = None, seed: int = 0, **options: str) -> Listing:
    return list_sources([str(i) for i in inputs], SourcesConfig(**options), limit=limit, seed=seed)  # type: ignore[arg-type]


def keys(listing: Listing) -> list[str]:
    return [row["source_key"] for row in listing.rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    root.mkdir()
    for index in range(200):
        (root / f"{index}.mp4").touch()
    return root


def test_a_larger_limit_keeps_the_smaller_ones_rows(folder: Path) -> None:
    samples = [set(keys(listed(folder, limit=limit))) for limit in (1, 10, 50, 200, 1000)]
    assert [len(sample) for sample in samples] == [1, 10, 50, 200, 200]
    assert all(less <= more for less, more in itertools.pairwise(samples))
    assert listed(folder, limit=10).found == 200


def test_the_sample_depends_on_the_seed_and_on_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = keys(listed(folder, limit=10))
    assert first == sorted(first) == keys(listed(folder, limit=10))
    assert first != keys(listed(folder, limit=10, seed=1))
    folder.rename(tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").rename(tmp_path / "elsewhere" / "many")
    assert first == keys(listed(tmp_path / "elsewhere" / "many", limit=10))


def test_the_order_and_repetition_of_inputs_do_not_matter(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.touch()
    manifest = tmp_path / "t.csv"
    manifest.write_text("path\na.mp4\na.mp4\n")
    forward, backward = listed(folder, other, manifest), listed(manifest, other, folder, other)
    assert forward.rows == backward.rows
    assert keys(forward) == sorted(keys(forward))


def test_every_row_has_a_key_of_its_own(tmp_path: Path) -> None:
    manifest = tmp_path / "t.csv"
    manifest.write_text("id,path\nx,1.mp4\nx,2.mp4\nx #2,3.mp4\nx,4.mp4\n")
    listing = listed(manifest)
    assert keys(listing) == ["t.csv/x", "t.csv/x #2", "t.csv/x #2 #2", "t.csv/x #3"]
    assert [Path(row["uri"]).name for row in listing.rows] == ["1.mp4", "2.mp4", "", "4.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "first_key"),
    [
        ("clips.csv", "path,id\na.mp4,x\n", "clips.csv/x"),
        ("clips.ndjson", '{"path": "a.mp4"}\n', "clips.ndjson/a.mp4"),
        ("panda.csv", (FIXTURES / "panda70m.csv").read_text(), "panda70m/--dQ3kLm8Zs"),
        ("ego4d.json", (FIXTURES / "ego4d.json").read_text(), "ego4d/0a1c5e6f-7b2d-4c3e-9f80-1a2b3c4d5e6f"),
        ("movie.mp4", "", "movie.mp4"),
    ],
)
def test_auto_recognises_inputs(tmp_path: Path, name: str, text: str, first_key: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "any.mp4").touch()
    assert keys(listed(tmp_path / name))[0] == first_key


@pytest.mark.parametrize(
    ("adapter", "name", "text", "message"),
    [
        ("table", "folder", None, "is a folder; adapter table takes a manifest"),
        ("table", "x.txt", "a", "unknown extension"),
        ("table", "*.csv", None, "does not exist; adapter table"),
        ("panda70m", "x.csv", "path\na.mp4\n", "Panda-70M's have videoID"),
        ("ego4d", "x.json", "[]", "is not an ego4d.json"),
        ("auto", "x.json", "{", "is not JSON"),
        ("ego4d", "x.json", '{"videos": []}', "lists no videos"),
        ("auto", "x.csv", "", "is empty"),
        ("auto", "x.csv", "path,id\n", "has no rows"),
        ("auto", "x.jsonl", "\n", "has no rows"),
    ],
)
def test_a_wrong_input_is_the_users_mistake(
    tmp_path: Path, adapter: str, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    elif name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=message):
        listed(tmp_path / name, adapter=adapter)


def test_no_input_and_a_limit_below_one_are_the_users_mistakes(folder: Path) -> None:
    with pytest.raises(UserError, match="no input"):
        listed()
    with pytest.raises(UserError, match="limit is 0"):
        listed(folder, limit=0)


@pytest.mark.slow
def test_a_quarter_of_a_million_rows(tmp_path: Path) -> None:
    manifest = tmp_path / "big.jsonl"
    with open(manifest, "w") as file:
        for index in range(250_000):
            file.write(json.dumps({"video_id": f"v{index:07d}", "path": f"shard{index % 100}/v{index:07d}.mp4"}) + "\n")
    started = time.process_time()
    assert listed(manifest).found == 250_000
    assert time.process_time() - started < 60  # 3 s where measured


def test_a_sample_does_not_keep_the_rows_it_leaves_out(tmp_path: Path) -> None:
    manifest = tmp_path / "big.jsonl"
    manifest.write_text("".join(f'{{"id": "v{index:07d}", "path": "{"d" * 1000}"}}\n' for index in range(10_000)))
    tracemalloc.start()
    assert len(listed(manifest, limit=10).rows) == 10
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5 * 2**20  # the paths alone are 10 MB
