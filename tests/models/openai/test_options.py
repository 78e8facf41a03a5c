"""Settings of the describer on an endpoint: what is refused, what decides results, what is said to lack."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.models import registry
from pipeline.models.openai.options import Options
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

SECRET = "sk-secret-9"
URL = "https://api.example.com/v1"


def spec(**options: Any) -> ModelSpec:
    return ModelSpec(family="openai", name="m", options={"base_url": URL, **options})


def refused(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        registry.options("describer", spec(**options))
    return str(caught.value)


def test_where_the_frames_are_sent_must_be_said() -> None:
    with pytest.raises(UserError, match=r"describer's options.base_url: "):
        registry.options("describer", ModelSpec(family="openai", name="m"))


@pytest.mark.parametrize("url", ["api.example.com/v1", "ftp://example.com", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert "options.base_url: expected a URL such as http://127.0.0.1:8000/v1" in refused(base_url=url)


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@x/v1", f"https://{SECRET}@x/v1", f"https://x/v1?key={SECRET}"])
def test_a_url_with_a_secret_is_refused_and_not_shown(url: str) -> None:
    assert SECRET not in refused(base_url=url)


def test_a_key_in_place_of_its_variable_is_refused_and_not_shown() -> None:
    told = refused(api_key_env=SECRET)
    assert SECRET not in told and "expected the name of an environment variable" in told


def test_a_key_has_no_place_in_the_config() -> None:
    told = refused(api_key=SECRET)
    assert SECRET not in told and "did you mean api_key_env?" in told


@pytest.mark.parametrize(
    "wrong", [{"tries": 0}, {"temperature": 3.0}, {"frames_as": "gif"}, {"jpeg_quality": 0}, {"retry_factor": 1}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    assert f"describer's options.{next(iter(wrong))}: " in refused(**wrong)


@pytest.mark.parametrize(("min_frames", "max_frames"), [(9, 8), (33, 32)])
def test_a_budget_that_no_clip_fits_is_refused(min_frames: int, max_frames: int) -> None:
    with pytest.raises(UserError, match="min_frames <= max_frames"):
        registry.card("describer", spec(min_frames=min_frames, max_frames=max_frames))


def test_a_budget_is_that_of_the_options() -> None:
    budget = registry.card("describer", spec(fps=2.0, max_frames=10, frames_as="video")).budget
    assert budget is not None
    assert budget.frames(1.0).count == 4 and budget.frames(60.0).count == 10
    assert budget.frames(3.6).count == 6, "frames of a video come in pairs"


def test_a_card_costs_no_network_and_names_the_keys_variable() -> None:
    card = registry.card("describer", spec(api_key_env="MY_KEY", max_concurrency=7))
    assert card.environment == ("MY_KEY",) and card.in_flight == 7 and card.reads_prompts and card.gpus == 0
    assert registry.card("describer", spec(api_key_env="")).environment == ()


@pytest.mark.parametrize(
    "place",
    [
        {"base_url": "http://127.0.0.1:1/v1"},
        {"api_key_env": "MY_KEY"},
        {"must_be_listed": False},
        {"max_concurrency": 2, "timeout_s": 1.0, "connect_timeout_s": 1.0},
        {"tries": 2, "backoff_s": 2.0, "backoff_max_s": 3.0, "retry_after_max_s": 1.0, "outage_s": 1.0},
    ],
)
def test_where_the_model_is_and_how_patient_we_are_decide_no_result(place: dict[str, Any]) -> None:
    assert registry.identity("describer", spec(**place)) == registry.identity("describer", spec())


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"temperature": None},
        {"frames_as": "video"},
        {"frame_format": "png"},
        {"max_frames": 31},
        {"json_schema": False},
        {"extra_body": {"top_k": 1}},
    ],
)
def test_what_is_asked_decides_results(other: dict[str, Any]) -> None:
    assert registry.identity("describer", spec(**other)) != registry.identity("describer", spec())


def test_a_key_that_is_surely_wanted_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    (line,) = registry.lacks("describer", spec(api_key_env="MY_KEY"))
    assert line.startswith(f"no key for {URL}; run: export MY_KEY=")
    monkeypatch.setenv("MY_KEY", SECRET)
    assert registry.lacks("describer", spec(api_key_env="MY_KEY")) == []


@pytest.mark.parametrize("options", [{"base_url": "http://127.0.0.1:8000/v1"}, {"api_key_env": ""}])
def test_a_server_that_may_want_no_key_lacks_none(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert registry.lacks("describer", spec(**options)) == []


def test_a_trailing_slash_is_no_part_of_the_url() -> None:
    assert Options(base_url="http://x/v1/").base_url == "http://x/v1"
