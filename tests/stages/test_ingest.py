"""Ingest: which files are videos, which video they are, and the reason for each that is none."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pytest

from pipeline.media.open import uri_of
from pipeline.media.probe import probe
from pipeline.records import is_valid_id, schema
from pipeline.sources.rows import Problem, source_row
from pipeline.stage import Chunk, Output, Rejected, Retryable, Row, Workspace
from pipeline.stages import ingest as ingest_module
from pipeline.stages.ingest import Ingest, IngestConfig


class Unguarded:
    """As much of a Workspace as ingest uses; it probes in this process."""

    def __init__(self) -> None:
        self.probed = 0

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        assert (job, media_s) == ("probe", None)
        self.probed += 1
        yield from probe(**args)


def apply(row: Row, work: Unguarded) -> Output:
    return Ingest(IngestConfig()).apply(row, cast(Workspace, work))


def row_of(uri: str, given_id: str | None = None, problem: Problem | None = None) -> Row:
    return source_row("k", "holiday", uri, given_id=given_id, meta='{"a": 1}', problem=problem)


def ingested(uri: str, given_id: str | None = None) -> Row:
    output = apply(row_of(uri, given_id), Unguarded())
    [row] = output.rows
    table = pa.Table.from_pylist([{"source_key": "k", **row}], schema("ingest"))
    table.validate(full=True)
    assert set(row) | {"source_key"} == set(table.schema.names)
    return row


def rejection(uri: str, given_id: str | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        apply(row_of(uri, given_id), Unguarded())
    caught.value.detail.encode("utf-8")
    return caught.value


def test_a_file_is_named_by_its_bytes(tiny_videos: Path, tmp_path: Path) -> None:
    data = (tiny_videos / "cuts.mp4").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    row = ingested(str(tiny_videos / "cuts.mp4"))
    assert row == {
        "video_id": digest[:32],
        "dataset": "holiday",
        "uri": str(tiny_videos / "cuts.mp4"),
        "identity": f"sha256:{digest}",
        "duration_s": 18.0,
        "fps": 10.0,
        "width": 64,
        "height": 48,
        "rotation": 0,
        "codec": "h264",
        "bytes": len(data),
        "meta": '{"a": 1}',
    }
    assert is_valid_id(row["video_id"])
    (tmp_path / "copy.mp4").write_bytes(data)
    assert ingested(str(tmp_path / "copy.mp4"))["video_id"] == row["video_id"]
    (tmp_path / "copy.mp4").write_bytes(data + b"\0")
    assert ingested(str(tmp_path / "copy.mp4"))["video_id"] != row["video_id"]


def test_all_bytes_count_however_many_blocks(tiny_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ingested(str(tiny_videos / "cuts.mp4"))
    monkeypatch.setattr(ingest_module, "_BLOCK_BYTES", 1000)
    assert ingested(str(tiny_videos / "cuts.mp4")) == whole


def test_an_id_of_the_manifest_is_kept_and_the_file_not_hashed(
    tiny_videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_sha256", pytest.fail)
    row = ingested(str(tiny_videos / "cuts.mp4"), "-0bc_9")
    assert (row["video_id"], row["identity"]) == ("-0bc_9", "manifest")


def test_rotation_and_an_unknown_duration_are_told(tiny_videos: Path) -> None:
    assert ingested(str(tiny_videos / "turned.mp4"))["rotation"] == 90
    assert ingested(str(tiny_videos / "live.webm"))["duration_s"] is None


@pytest.mark.parametrize("name", [b"new\nline 'q' \".mp4", b"\xff\xfe.mp4", b"n" * 251 + b".mp4", b"100%41.mp4"])
def test_a_file_of_any_name(tiny_videos: Path, tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.link(tiny_videos / "short.mp4", path)
    assert ingested(uri_of(path))["video_id"] == ingested(str(tiny_videos / "short.mp4"))["video_id"]


@pytest.mark.parametrize(
    "case", ["missing", "unreadable", "no_video_stream", "not_video", "not_video:picture", "not_video:empty"]
)
@pytest.mark.parametrize("given_id", [None, "x"])
def test_broken_files(broken_videos: dict[str, Path], case: str, given_id: str | None) -> None:
    assert rejection(str(broken_videos[case]), given_id).reason == case.partition(":")[0]


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, words in (
        (tmp_path / "folder.mp4", "a folder"),
        (tmp_path / "pipe.mp4", "a named pipe"),
        ("/dev/zero", "a device"),
    ):
        work = Unguarded()
        with pytest.raises(Rejected, match=f"{words}, not a regular file") as caught:
            apply(row_of(str(path)), work)
        assert (caught.value.reason, work.probed) == ("not_video", 0)


def test_missing_in_the_systems_words(tmp_path: Path, tiny_videos: Path) -> None:
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    details = {
        str(tmp_path / "gone.mp4"): "No such file or directory",
        str(tmp_path / "dangling.mp4"): "a link that leads nowhere: No such file or directory",
        str(tmp_path / "loop.mp4"): "a link that leads nowhere: Too many levels of symbolic links",
        str(tmp_path / ("n" * 300 + ".mp4")): "File name too long",
        str(tiny_videos / "cuts.mp4" / "x.mp4"): "Not a directory",
    }
    for uri, detail in details.items():
        found = rejection(uri)
        assert (type(found), found.reason, found.detail) == (Rejected, "missing", detail)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, Rejected), (errno.EIO, Retryable), (errno.ESTALE, Retryable)]
)
def test_only_a_failure_that_may_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Rejected]
) -> None:
    def fail(path: str) -> os.stat_result:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(Rejected) as caught:
        ingest_module._find_local(str(tmp_path / "a.mp4"))
    assert (type(caught.value), caught.value.reason, caught.value.detail) == (kind, "missing", os.strerror(number))


def test_a_rows_own_problem_is_its_reject() -> None:
    work = Unguarded()
    with pytest.raises(Rejected) as caught:
        apply(row_of("", problem=Problem("bad_row", "line 3: not JSON")), work)
    assert (caught.value.reason, caught.value.detail, work.probed) == ("bad_row", "line 3: not JSON", 0)


class Server(ThreadingHTTPServer):
    """Serves one video at every path; the path says how: /etag, /weak, /plain, /404, /503, /empty."""

    data = b""

    class Handler(BaseHTTPRequestHandler):
        server: Server

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            kind = self.path.strip("/").partition("?")[0]
            data = b"" if kind == "empty" or kind.isdigit() else self.server.data
            begin, end = 0, len(data)
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(end, int(last or end) + 1)
            self.send_response(int(kind) if kind.isdigit() else 206 if asked else 200)
            self.send_header("Content-Length", str(end - begin))
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            if kind in ("etag", "weak"):
                self.send_header("ETag", '"abc"' if kind == "etag" else 'W/"abc"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[begin:end])

        def log_message(self, format: str, *args: object) -> None:
            pass


@pytest.fixture
def server(tiny_videos: Path) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Server.Handler) as server:
        server.data = (tiny_videos / "short.mp4").read_bytes()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_remote_file_is_named_by_size_and_etag(server: str, tiny_videos: Path) -> None:
    size = (tiny_videos / "short.mp4").stat().st_size
    row = ingested(f"{server}/etag")
    assert row["identity"] == f"size+etag:{size}:abc"
    assert row["video_id"] == hashlib.sha256(row["identity"].encode()).hexdigest()[:32]
    assert row["bytes"] == size
    assert ingested(f"{server}/etag?signature=2")["video_id"] == row["video_id"]


@pytest.mark.parametrize("kind", ["weak", "plain"])
def test_without_a_strong_etag_a_remote_file_is_named_by_its_bytes(server: str, tiny_videos: Path, kind: str) -> None:
    local = ingested(str(tiny_videos / "short.mp4"))
    remote = ingested(f"{server}/{kind}")
    assert (remote["video_id"], remote["identity"]) == (local["video_id"], local["identity"])


@pytest.mark.parametrize(
    ("path", "kind", "reason", "detail"),
    [
        ("404", Rejected, "missing", "HTTP status 404"),
        ("403", Rejected, "missing", "HTTP status 403"),
        ("503", Retryable, "missing", "HTTP status 503"),
        ("empty", Rejected, "not_video", "the file is empty"),
    ],
)
def test_a_remote_file_that_is_not_there(
    server: str, path: str, kind: type[Rejected], reason: str, detail: str
) -> None:
    found = rejection(f"{server}/{path}")
    assert (type(found), found.reason) == (kind, reason)
    assert detail in found.detail


def test_a_server_that_does_not_answer_is_tried_again() -> None:
    found = rejection("http://127.0.0.1:9/a.mp4")
    assert (type(found), found.reason) == (Retryable, "missing")


def test_an_object_of_a_bucket(tiny_videos: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/shelf/a.mp4", (tiny_videos / "short.mp4").read_bytes())
    try:
        assert ingested("memory://shelf/a.mp4")["video_id"] == ingested(str(tiny_videos / "short.mp4"))["video_id"]
        assert rejection("memory://shelf").reason == "not_video"
        assert type(rejection("memory://shelf/b.mp4")) is Rejected
    finally:
        files.rm("/shelf", recursive=True)


SHARED_OUTCOMES = {
    "audio_only.mp4": "no_video_stream",
    "bitflip_h264.mp4": None,
    "bogus_duration_fragmented.mp4": None,
    "corrupted_decord.mp4": None,
    "header_only.mp4": None,
    "jpeg_named.mp4": "not_video",
    "moov_missing_streamio.mp4": "unreadable",
    "no_duration.webm": None,
    "one_frame.mp4": None,
    "text_named.mp4": "not_video",
    "truncated_moov_first.mp4": None,
    "truncated_no_moov.mp4": "unreadable",
    "vp9_invalid_bitstream.webm": None,
    "zero_byte.mp4": "not_video",
}
"""What ingest makes of each broken file; None is a video (what decodes of it, `scan` finds out)."""


def test_every_broken_file_of_the_shared_videos(shared_videos: Path) -> None:
    found: dict[str, str | None] = {}
    for path in sorted((shared_videos / "broken").iterdir()):
        try:
            ingested(str(path))
            found[path.name] = None
        except Rejected as rejected:
            found[path.name] = rejected.reason
    assert found == SHARED_OUTCOMES


def test_every_whole_file_of_the_shared_videos(shared_videos: Path) -> None:
    paths = [p for p in sorted(shared_videos.iterdir()) if p.is_file() and p.suffix not in (".csv", ".md")]
    assert len({ingested(str(path))["video_id"] for path in paths}) == len(paths) == 30
