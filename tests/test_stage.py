"""What every stage has from its base class, and what a config's hash depends on."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any

import numpy as np
import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.records import Grain
from pipeline.stage import Chunk, MapStage, Output, Rejected, Retryable, Row, ShotReject, Workspace, digest, plain


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Weights:
    name: str = "small"
    path: str | None = field(default=None, metadata={"place": True})


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Settings:
    threshold: float = 0.5
    rules: tuple[str, ...] = ()
    model: Weights = field(default_factory=Weights)


class Measure(MapStage):
    name = "embed"
    grain_in = grain_out = Grain.VIDEO
    reads = ()

    def __init__(self, config: Settings, prompts: str = "p1") -> None:
        self.config = config
        self._prompts = prompts

    def depends_on(self) -> dict[str, str]:
        return {"prompts": self._prompts}

    def apply(self, row: Row, work: Workspace) -> Output:
        raise NotImplementedError


def test_a_hash_covers_config_version_and_what_the_stage_depends_on() -> None:
    class Newer(Measure):
        version = 2

    settings = Settings()
    stages = [
        Measure(settings),
        Measure(replace(settings, threshold=0.6)),
        Measure(replace(settings, rules=("a",))),
        Measure(replace(settings, model=Weights(name="large"))),
        Measure(settings, prompts="p2"),
        Newer(settings),
    ]
    assert len({stage.own_hash() for stage in stages}) == len(stages)
    assert Measure(Settings()).own_hash() == stages[0].own_hash()


def test_a_hash_does_not_tell_where_things_lie() -> None:
    moved = Settings(model=Weights(path="/disk2/weights"))
    assert Measure(moved).own_hash() == Measure(Settings()).own_hash()
    assert plain(moved)["model"] == {"name": "small", "path": "/disk2/weights"}
    assert plain(moved, places=False)["model"] == {"name": "small"}


def test_plain_values_are_those_of_json() -> None:
    assert plain(Settings(rules=("a", "b"))) == {
        "threshold": 0.5,
        "rules": ["a", "b"],
        "model": {"name": "small", "path": None},
    }
    assert plain({1: (2, [3])}) == {"1": [2, [3]]}


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, [1], [1, 2], [2, 1])}) == 8


def test_a_digest_stays_what_it_was() -> None:
    """Fingerprints of run folders are made from it: changing it recomputes every run there is.

    The value is that of sha256sum over the JSON with sorted keys and without spaces.
    """
    assert digest({"stage": "split", "config": {"threshold": 45.0, "name": "é"}}) == "0a992c0931e927ed"


def test_a_stage_without_a_table_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"Homeless: no table 'attic' in pipeline/records.py; add its columns there"):

        class Homeless(MapStage):
            name = "attic"


def test_only_known_reasons_reject() -> None:
    with pytest.raises(AssertionError, match="bad_mood"):
        Rejected("bad_mood", "")
    with pytest.raises(AssertionError):
        Retryable("", "")


def test_a_rejection_carries_its_shots() -> None:
    dropped = [ShotReject(3, "too_short", "1 s")]
    rejected = Rejected("no_clip_left", "of 1 shot", dropped)
    assert (rejected.reason, rejected.detail, rejected.shot_rejects) == ("no_clip_left", "of 1 shot", dropped)
    assert isinstance(Retryable("timeout", "slow"), Rejected)


@pytest.mark.parametrize(
    ("arrays", "nbytes"),
    [({}, 0), ({"frames": np.zeros((2, 3, 3, 3), np.uint8), "times_s": np.zeros(2)}, 54 + 16)],
)
def test_a_chunk_knows_what_it_weighs(arrays: dict[str, Any], nbytes: int) -> None:
    assert Chunk(arrays).nbytes == nbytes
