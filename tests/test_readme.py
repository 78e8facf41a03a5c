"""Every command of the documents is run: `hicom` lines here, in order, on drawn videos; `make` lines by name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli import main
from pipeline.demo.videos import write_demo_videos

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "manifests/SOURCES.md")
ELSEWHERE = {
    # needs a cluster and an object store: tests/engine/test_ray_probe.py and tests/test_s3_run.py run these two apart
    "hicom run s3://bucket/videos --profile demo --out s3://bucket/run --address auto",
    # needs a GPU and weights: tests/test_real_models.py runs it with tiny ones
    "hicom run ~/videos --profile small --out real-run",
}
CODES = {"hicom doctor --profile small": (0, 1), "hicom doctor --profile hicom248k": (0, 1)}
"""Exit codes of commands that need not end in 0: where GPUs or weights are lacking, they say so."""


def _lines(document: str) -> list[str]:
    """Lines of fenced blocks, comments cut off."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = (re.sub(r"\s{2,}#.*", "", line).strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def _commands(document: str) -> list[str]:
    lines = (line.removeprefix(".venv/bin/") for line in _lines(document))
    return [line for line in lines if line.startswith("hicom ") and line not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_documents_commands_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    made = write_demo_videos(home / "videos")
    (home / "more-videos").mkdir()
    made[0].rename(home / "more-videos" / "another.mp4")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").symlink_to(home / "videos")
    for command in _commands(document):
        words = [word.replace("~", str(home), 1) if word.startswith("~") else word for word in shlex.split(command)[1:]]
        if words[0] in ("run", "retry") and "--engine" not in words:
            words += ["--engine", "local"]  # Ray has its own tests; here the words of the command are in question
        assert _exit_code(words) in CODES.get(command, (0,)), command


def _exit_code(words: list[str]) -> int | str | None:
    if words[0] == "doctor":
        # It starts Ray, which a process that has started Ray clusters before, as this one may have, cannot do again.
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run([sys.executable, str(ROOT / "cli.py"), *words], env=env, timeout=200).returncode
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


def test_the_documents_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        for line in _lines(document):
            if line.startswith("make "):
                assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE), line


def test_the_documents_links_lead_to_files() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target:
                assert ((ROOT / document).parent / target.partition("#")[0]).exists(), f"{document}: {target}"
