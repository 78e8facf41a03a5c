"""Finding a model's files, from a folder and from a hub on loopback; the hub's client is the real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.models import weights
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
from tests.models.loopback_hub import COMMIT, hub

PATTERNS = ["config.json", "*.safetensors|*.bin"]
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs the extra models")

Ask = Callable[..., str]


def _spec(path: Path | None = None, name: str = "acme/open", revision: str = COMMIT) -> ModelSpec:
    return ModelSpec(family="open_clip", name=name, revision=revision, path=None if path is None else str(path))


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_missing_packages_are_named_with_what_to_type() -> None:
    assert weights.lacking_packages(["json", "no_such_thing"], "models") == [
        "the package no_such_thing is not installed; run: pip install 'hicom-248k-builder[models]'"
    ]
    with pytest.raises(
        UserError, match=r"no_such_thing is not installed; run: pip install 'hicom-248k-builder\[vllm\]'"
    ):
        weights.require("json", "no_such_thing", extra="vllm")
    weights.require("json", extra="models")


@pytest.mark.parametrize("names", [("config.json", "a.safetensors"), ("config.json", "a.bin")])
def test_a_local_folder_serves_as_it_is(tmp_path: Path, names: tuple[str, ...]) -> None:
    spec = _spec(_folder(tmp_path, *names), revision="")
    assert weights.folder(spec, PATTERNS) == tmp_path
    assert weights.lacking_weights(spec, PATTERNS) == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((), "has no config.json, no *.safetensors or *.bin"),
        (("config.json",), "has no *.safetensors or *.bin"),
    ],
)
def test_a_local_folder_that_lacks_files_says_which(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    spec = _spec(_folder(tmp_path, *names))
    assert weights.lacking_weights(spec, PATTERNS) == [f"model {spec.key}: the folder {str(tmp_path)!r} {complaint}"]
    with pytest.raises(UserError, match="has no"):
        weights.folder(spec, PATTERNS)


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its path '.*gone' is not a folder; give the folder"):
        weights.folder(_spec(tmp_path / "gone"), PATTERNS)


def test_a_shard_that_the_index_names_and_is_not_there_is_missing(tmp_path: Path) -> None:
    place = _folder(tmp_path, "config.json", "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"has no model-2\.safetensors$"):
        weights.folder(_spec(place), PATTERNS)


@pytest.mark.parametrize("text", ['{"weight_map": {"a": "mod', "[]", "\x00"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    place = _folder(tmp_path, "config.json", "model-1.safetensors")
    (place / "model.safetensors.index.json").write_text(text)
    (line,) = weights.lacking_weights(_spec(place), PATTERNS)
    assert line.startswith(f"model {_spec(place).key}: {place}/model.safetensors.index.json is damaged (")
    assert "copy it again" in line
    with pytest.raises(UserError, match="copy it again"):
        weights.folder(_spec(place), PATTERNS)


@pytest.mark.parametrize("revision", ["", "main", "v1.0", COMMIT[:12]])
def test_only_a_commit_pins_a_hub_model(revision: str) -> None:
    with pytest.raises(UserError, match=r"its revision must be a commit of huggingface.co/acme/open, 40 hex digits"):
        weights.folder(_spec(revision=revision), PATTERNS)


@pytest.mark.parametrize("name", ["a/b/c", "../secret", "with space/x"])
def test_a_name_that_no_hub_has_is_refused(name: str) -> None:
    assert "must be a repository of the Hugging Face hub" in weights.lacking_weights(_spec(name=name), PATTERNS)[0]


_CHILD = """
import json, sys
from pipeline.models import weights
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
name, revision, main_of, look = json.loads(sys.argv[1])
spec = ModelSpec(family="open_clip", name=name, revision=revision)
wanted = (spec, ["config.json", "*.safetensors|*.bin"], ["tokenizer*", "chat_template*"])
try:
    if look == "folder":
        print(*weights.files_in(weights.folder(*wanted, main_of=main_of)))
    else:
        print(*weights.lacking_weights(*wanted, main_of=main_of), sep="\\n")
except UserError as err:
    print(f"UserError: {err}")
"""


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[tuple[Ask, list[str]]]:
    """Asks for a model in a process of its own, whose hub is on loopback and whose cache is empty at first; and the
    paths that the hub was asked for."""
    with hub() as (address, asked):

        def ask(
            name: str = "acme/open",
            revision: str = COMMIT,
            main_of: str | None = None,
            look: str = "folder",
            **env: str,
        ) -> str:
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, json.dumps([name, revision, main_of, look])],
                env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", **env},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert child.returncode == 0, child.stderr
            return child.stdout.strip()

        yield ask, asked


@needs_hub
def test_a_hub_model_is_fetched_once_and_only_what_is_wanted(loopback: tuple[Ask, list[str]]) -> None:
    ask, asked = loopback
    assert ask() == "config.json model.safetensors tokenizer.json"
    assert not any(path.endswith((".bin", ".txt")) for path in asked)
    asked.clear()
    assert ask() == ask(HF_HUB_OFFLINE="1") == "config.json model.safetensors tokenizer.json"
    assert ask(look="lacking") == ""
    assert asked == []


@needs_hub
def test_looking_for_what_is_missing_asks_no_network(loopback: tuple[Ask, list[str]]) -> None:
    ask, asked = loopback
    assert f"run once without --offline, or `hf download acme/open --revision {COMMIT}`" in ask(look="lacking")
    assert asked == []


@needs_hub
def test_offline_and_not_cached_is_one_line(loopback: tuple[Ask, list[str]]) -> None:
    ask, asked = loopback
    answer = ask(HF_HUB_OFFLINE="1")
    assert answer.startswith(
        f"UserError: model open_clip:acme/open@{COMMIT}: offline, and the files of acme/open are not"
    )
    assert "\n" not in answer
    assert asked == []


@needs_hub
@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        (
            "acme/gated",
            COMMIT,
            "its weights are gated; accept the terms on http://.*/acme/gated, then run `hf auth login`",
        ),
        ("acme/nobody", COMMIT, "/acme/nobody is not there or is private; check the name, or run `hf auth login`"),
        ("acme/open", "f" * 40, "/acme/open has no revision ffff"),
        ("acme/busy", COMMIT, "/acme/busy answered 503"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    loopback: tuple[Ask, list[str]], name: str, revision: str, complaint: str
) -> None:
    answer = loopback[0](name, revision)
    assert "\n" not in answer
    assert re.search(complaint, answer), answer


@needs_hub
def test_a_hub_that_is_not_there_is_one_line(loopback: tuple[Ask, list[str]]) -> None:
    answer = loopback[0](HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached (ConnectError" in answer and "or set the model's `path`" in answer
    assert "\n" not in answer


@needs_hub
def test_an_interrupted_download_is_not_taken_for_whole(loopback: tuple[Ask, list[str]], tmp_path: Path) -> None:
    ask, _ = loopback
    ask()
    (weights_file,) = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
    weights_file.unlink()
    assert "are not all on this machine" in ask(HF_HUB_OFFLINE="1")
    assert ask() == "config.json model.safetensors tokenizer.json"
    (
        tmp_path / "hf/hub/models--acme--open/snapshots" / COMMIT / "tokenizer.json"
    ).unlink()  # optional, and the hub has it
    assert "are not all on this machine" in ask(HF_HUB_OFFLINE="1")


@needs_hub
def test_a_damaged_index_in_the_cache_is_named(loopback: tuple[Ask, list[str]], tmp_path: Path) -> None:
    ask, _ = loopback
    ask()
    index = tmp_path / "hf/hub/models--acme--open/snapshots" / COMMIT / "model.safetensors.index.json"
    index.write_text("{")
    for answer in (ask(look="lacking"), ask()):
        assert f"{index} is damaged (" in answer and "download it again" in answer


@needs_hub
def test_a_name_that_stands_for_a_repository_keeps_the_commit_it_first_got(loopback: tuple[Ask, list[str]]) -> None:
    ask, asked = loopback
    assert ask("ViT-X", "tag", "acme/open") == "config.json model.safetensors tokenizer.json"
    asked.clear()
    assert ask("ViT-X", "tag", "acme/open") == "config.json model.safetensors tokenizer.json"
    assert asked == []
