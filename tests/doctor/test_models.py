"""What a profile's models need of a machine: what is found, what is missing, and what it says to type."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import doctor
from pipeline.config import RunConfig, load_profile, parse
from pipeline.doctor import machine
from pipeline.doctor.check import Check
from pipeline.doctor.models import checks
from pipeline.stage import UserError
from tests.command_line import hicom, refused
from tests.fake_driver import gpus, put_driver
from tests.models.misbehaving_server import KEY, MODEL, MisbehavingServer

Driver = Callable[..., None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    (tmp_path / "bin").mkdir()
    return partial(put_driver, tmp_path / "bin", monkeypatch)


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached weights, the machine's own checks left out, and the environment as it was afterwards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(machine, "checks", lambda: [Check("python", True, "3.11")])
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def config(profile: str = "demo", /, **describer: Any) -> RunConfig:
    values = load_profile(profile)
    if describer:
        values["models"]["describer"] = describer
    return parse(values, {})


def failed(found: list[Check], name: str) -> list[str]:
    return [check.found for check in found if check.name == name and not check.ok]


def passed(found: list[Check]) -> dict[str, str]:
    return {check.name: check.found for check in found if check.ok}


# Profiles


def test_the_demo_needs_nothing(driver: Driver) -> None:
    driver(None)
    assert passed(checks(config())) == {
        "models.video_text": "builtin:attributes@1 is here",
        "models.frame": "builtin:visual@1 is here",
        "models.describer": "builtin:observer@1 is here",
        "gpus": "none, and no model reserves one",
    }


def test_weights_that_are_missing_are_told_with_what_to_type(driver: Driver) -> None:
    pytest.importorskip("vllm")
    driver(gpus(4))
    found = checks(config("hicom248k"))
    weights, vocabulary = failed(found, "models.video_text")
    assert "`hf download OpenGVLab/InternVideo2-Stage2_1B-224p-f4 --revision 4362e1f88a99" in weights
    assert "hf download google-bert/bert-large-uncased" in vocabulary
    (frame,) = failed(found, "models.frame")
    assert "hf download timm/vit_large_patch14_clip_336.openai" in frame
    (describer,) = failed(found, "models.describer")
    assert "hf download Qwen/Qwen2-VL-72B-Instruct --revision f400120e59a6" in describer
    assert passed(found)["gpus"] == "4 x NVIDIA A100-SXM4-80GB, 80 GiB"
    assert "14 contexts of 32,768" in passed(found)["gpu memory"]


def test_packages_that_are_missing_are_told_with_what_to_type(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(None)
    monkeypatch.setattr("pipeline.models.weights.find_spec", lambda name: None)
    found = checks(config("small"))
    for name, extra in (("models.video_text", "models"), ("models.frame", "models"), ("models.describer", "vllm")):
        assert f"run: pip install 'hicom-248k-builder[{extra}]'" in failed(found, name)[0]


def test_gpus_that_are_too_few_are_told(driver: Driver) -> None:
    pytest.importorskip("open_clip")
    driver(gpus(1))
    (line,) = failed(checks(config("hicom248k")), "gpus")
    assert line.startswith("models.describer reserves 4 GPUs, and this machine has 1: --set models.describer.options.")
    assert "tensor_parallel_size=..." in line
    driver(None)
    assert len(failed(checks(config("hicom248k")), "gpus")) == 3, "a line for each model"
    driver(gpus(8))
    assert failed(checks(config("hicom248k")), "gpus") == []
    driver("broken\n", 3)
    (line,) = set(failed(checks(config("hicom248k")), "gpus"))
    assert "nvidia-smi: broken" in line


def test_settings_that_do_not_go_together_are_told(driver: Driver) -> None:
    driver(None)
    values = {**load_profile("demo"), "select": {"categories": "categories"}}
    (line,) = failed(checks(parse(values, {})), "settings")
    assert "category 'A video about cooking activity.'" in line


def test_a_spec_that_its_family_refuses_is_told(driver: Driver) -> None:
    driver(None)
    wrong = {"family": "openai", "name": "m", "options": {"base_url": "http://127.0.0.1:9", "min_frames": 64}}
    (line,) = failed(checks(config(**wrong)), "models.describer")
    assert "min_frames 64" in line


# Endpoints


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    pytest.importorskip("openai")
    monkeypatch.setenv("MY_KEY", KEY)
    with MisbehavingServer() as running:
        yield running


def endpoint(server: MisbehavingServer, name: str = MODEL) -> RunConfig:
    quick = {"timeout_s": 5.0, "connect_timeout_s": 1.0, "backoff_s": 0.01}
    options = {"base_url": server.base_url, "api_key_env": "MY_KEY", **quick}
    return config(family="openai", name=name, options=options)


def test_an_endpoint_that_serves_the_model_is_sound(driver: Driver, server: MisbehavingServer) -> None:
    driver(None)
    found = checks(endpoint(server))
    assert [check for check in found if not check.ok] == []
    assert passed(found)["endpoint"] == f"{server.base_url} answers and serves {MODEL}"


def test_an_endpoint_that_turns_us_down_is_told(
    driver: Driver, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(None)
    (unknown,) = failed(checks(endpoint(server, "another")), "endpoint")
    assert MODEL in unknown and "another" in unknown
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    (wrong,) = failed(checks(endpoint(server)), "endpoint")
    assert "MY_KEY" in wrong and "sk-wrong" not in wrong


def test_an_endpoint_that_is_not_there_is_told(driver: Driver, server: MisbehavingServer) -> None:
    driver(None)
    gone = endpoint(server)
    server.__exit__(None, None, None)
    (line,) = failed(checks(gone), "endpoint")
    assert server.base_url in line


# The command


def test_the_command_checks_machine_and_profile_and_fails_when_something_is_missing(driver: Driver) -> None:
    driver(None)
    assert hicom("doctor", "--profile", "demo").out.splitlines()[:2] == [
        "ok   python: 3.11",
        "ok   models.video_text: builtin:attributes@1 is here",
    ]
    said = hicom("doctor", "--profile", "demo", "--set", "select.categories=categories", code=1)
    assert "FAIL settings: category 'A video about cooking activity.'" in said.out


def test_without_a_profile_only_the_machine_is_checked() -> None:
    assert hicom("doctor").out == "ok   python: 3.11\n"


def test_what_is_wrong_with_the_profile_itself_is_told_at_once(tmp_path: Path) -> None:
    assert "no profile 'x'" in refused("doctor", "--profile", "x")
    assert "did you mean threshold?" in refused("doctor", "--profile", "demo", "--set", "split.treshold=1")
    assert "add --profile NAME" in refused("doctor", "--set", "split.threshold=1")
    values = load_profile("demo")
    values["models"]["frame"] = {"family": "open_clip", "name": "x", "revision": "y", "options": {"gpu": 1}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    assert "did you mean gpus?" in refused("doctor", "--profile", tmp_path / "p.yaml")


def test_offline_holds_for_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("pipeline.doctor.models.checks", lambda config: seen.append(os.environ["HF_HUB_OFFLINE"]) or [])
    doctor.checks("demo")
    doctor.checks("demo", offline=True)
    assert seen == ["0", "1"]


def test_nothing_in_a_profile_is_checked_when_it_cannot_be_read() -> None:
    with pytest.raises(UserError, match="no profile 'nowhere'"):
        doctor.checks("nowhere")
