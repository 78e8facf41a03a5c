"""run.yaml is read whole or refused in words."""

from __future__ import annotations

import pytest

from pipeline.stage import UserError
from pipeline.store.files import Files
from pipeline.store.folder import FORMAT, RUN_FILE, read_run_file, write_run_file

RUN = {
    "profile": "demo",
    "overrides": {"split.threshold": 30},
    "inputs": ["videos/ü", "s3://bucket/run [1]"],
    "config": {"split": {"threshold": 45.0}},
    "stages": {},
    "versions": {"python": "3.11"},
}


def test_round_trip(files: Files) -> None:
    assert read_run_file(files) is None
    write_run_file(files, RUN)
    assert read_run_file(files) == {"format": FORMAT, **RUN}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"profile: [demo", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"", "is not a run file"),
        (b"- a list", "is not a run file"),
        (b"profile: demo", "is not a run file"),
        (b"format: 2", "has run folder format 2, this program reads 1"),
        (b"format: 1\nprofile: demo\n", "is not whole"),
    ],
)
def test_what_is_not_a_run_file_is_refused(local: Files, body: bytes, said: str) -> None:
    local.put(RUN_FILE, body)
    with pytest.raises(UserError, match=said):
        read_run_file(local)
    assert local.get(RUN_FILE) == body
