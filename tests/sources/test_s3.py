"""A bucket on an S3 server: listing, and ingest of what was listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import boto3  # type: ignore[import-untyped]  # comes with moto
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.media.probe import probe
from pipeline.sources.listing import SourcesConfig, list_sources
from pipeline.stage import Chunk, Rejected, UserError, Workspace
from pipeline.stages.ingest import Ingest, IngestConfig

pytestmark = pytest.mark.slow


class Unguarded:
    """As much of a Workspace as ingest uses; it probes in this process."""

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        return probe(**args)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tiny_videos: Path) -> Iterator[str]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it keeps the endpoint of the test before
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shelf")
    video = (tiny_videos / "short.mp4").read_bytes()
    for key in ("in/a.mp4", "in/deep/er/b c'\"%+?#.mp4", "in/notes.txt", "in/empty.mp4", "in/folder/", "other.mp4"):
        client.put_object(Bucket="shelf", Key=key, Body=video if key.endswith(("a.mp4", "#.mp4")) else b"")
    yield "s3://shelf"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket(bucket: str) -> None:
    listing = list_sources([f"{bucket}/in/"], SourcesConfig())
    assert [row["source_key"] for row in listing.rows] == ["in/a.mp4", "in/deep/er/b c'\"%+?#.mp4", "in/empty.mp4"]
    assert listing.rows[0]["uri"] == "s3://shelf/in/a.mp4"
    assert listing.ignored[".txt"] == 1
    stage = Ingest(IngestConfig())
    [a], [b] = (stage.apply(row, cast(Workspace, Unguarded())).rows for row in listing.rows[:2])
    assert a["identity"].startswith(f"size+etag:{a['bytes']}:")
    assert a["video_id"] == b["video_id"]
    with pytest.raises(Rejected, match="empty"):
        stage.apply(listing.rows[2], cast(Workspace, Unguarded()))
    with pytest.raises(Rejected) as caught:
        stage.apply({**listing.rows[0], "uri": f"{bucket}/in/gone.mp4"}, cast(Workspace, Unguarded()))
    assert (type(caught.value), caught.value.reason) == (Rejected, "missing")


def test_objects_and_globs_of_a_bucket(bucket: str) -> None:
    assert [row["source_key"] for row in list_sources([f"{bucket}/*.mp4"], SourcesConfig()).rows] == ["shelf/other.mp4"]
    assert len(list_sources([f"{bucket}/in/**/*.mp4"], SourcesConfig()).rows) == 3
    assert [row["dataset"] for row in list_sources([f"{bucket}/in/a.mp4"], SourcesConfig()).rows] == ["in"]
    for missing in (f"{bucket}/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(UserError, match=r"does not exist|cannot be looked up"):
            list_sources([missing], SourcesConfig())


def test_a_server_that_refuses_is_the_users_mistake(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match="cannot be looked up"):
        list_sources([f"{bucket}/in"], SourcesConfig())
