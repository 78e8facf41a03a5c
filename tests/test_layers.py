"""Who may import whom. The table below is the rule; design and CONTRIBUTING refer to it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_TO_STAGE = {"records", "resources", "stage"}
_TO_STAGES = _TO_STAGE | {"media", "models", "export", "stages"}
_BESIDE = {"sources", "media", "store", "engine", "stats_sql"}
MAY_IMPORT: dict[str, set[str]] = {
    # The ladder.
    "records": set(),
    "resources": set(),
    "stage": {"records", "resources"},
    "media": _TO_STAGE,
    "models": _TO_STAGE | {"media"},
    "export": _TO_STAGE | {"media"},
    "stages": _TO_STAGE | {"media", "models", "export"},
    "plan": _TO_STAGES,
    "config": _TO_STAGES | {"plan", "sources", "engine"},
    # Beside it: these know rows and tables, and not one stage by name.
    "sources": {"records", "stage", "media"},
    "demo": {"records", "media"},
    "store": _TO_STAGE,
    "engine": _TO_STAGE | {"store", "media"},
    "stats_sql": {"records"},
    "gpus": set(),
    # On top.
    "session": _TO_STAGES | {"plan", "config", "store"},
    "query": _TO_STAGE | {"store", "stats_sql", "session"},
    "report": _TO_STAGE | {"store", "stats_sql", "session", "query"},
    "runner": _TO_STAGE | {"plan", "config", "session", "store", "engine"},
    "readiness": _TO_STAGES | {"config", "gpus"},
    "commands": _TO_STAGE | _BESIDE | {"models", "plan", "config", "session", "query", "report", "readiness", "runner"},
    "estimate": _TO_STAGES | {"plan", "config", "sources", "store", "session", "query"},
    "show": _TO_STAGE | {"plan", "store", "engine", "session"},
    "show_prompts": _TO_STAGES | {"config", "session", "query"},
    "doctor": _TO_STAGE | {"media", "models", "config", "engine", "gpus", "readiness"},
    "demo.tour": {"commands", "query", "session", "show", "stage"},
}
"""Each part of `pipeline`, and the other parts it may import; a module with a line of its own goes by that line.
A part may import itself, but stages never each other."""

COMPRESSOR_MAY_IMPORT = {"records", "media"}

ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": ("pipeline/engine/ray_",),
    "av": ("pipeline/media/",),
    "cv2": ("pipeline/media/", "pipeline/models/"),
    "scenedetect": ("pipeline/stages/split.py",),
    "torch": ("pipeline/models/", "compressor/"),
}
"""Packages that only some files may import, by the beginning of the file's path."""

HEAVY = ("ray", "torch", "av", "cv2", "scenedetect", "pandas")


def sources() -> list[Path]:
    return [ROOT / "cli.py", *sorted(p for top in ("pipeline", "compressor") for p in (ROOT / top).rglob("*.py"))]


def imports(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by full dotted name; `from a import b` gives a.b."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def complaints(path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with one file's imports."""
    file = path.relative_to(root).as_posix()
    found = []
    for dotted in imports(path, root):
        top, *inner = dotted.split(".")
        if top == "cli":
            found.append(f"{file} imports cli; nothing does")
        if top in ONLY_IN and not file.startswith(ONLY_IN[top]):
            found.append(f"{file} imports {top}; only {', '.join(ONLY_IN[top])}* may")
        if top == "pipeline" and inner:
            found += [f"{file} imports {dotted}; {rule}" for rule in _broken_rules(file, inner)]
    return found


def _broken_rules(file: str, imported: list[str]) -> Iterator[str]:
    """Rules that a file breaks by importing a module inside `pipeline`, given by its names."""
    top, *inner = file.removesuffix(".py").split("/")
    there = imported[0]
    if top == "compressor":
        if there not in COMPRESSOR_MAY_IMPORT:
            yield f"compressor may import {sorted(COMPRESSOR_MAY_IMPORT)}"
    elif top == "pipeline" and inner != ["__init__"]:
        here = inner[0]
        allowed = MAY_IMPORT.get(".".join(inner), MAY_IMPORT.get(here, set()))
        if here == there == "stages" and not _own_helper(inner[1], "".join(imported[1:2])):
            yield "stages never import each other"
        if there not in allowed | {here}:
            yield f"{here} may import {sorted(allowed)}"


def _own_helper(stage: str, module: str) -> bool:
    """A stage's file may be split: `clean.py` may import `clean_rules.py`, whose name says whose it is."""
    return module.startswith(f"{stage}_")


def test_every_import_keeps_to_the_table() -> None:
    assert [line for path in sources() for line in complaints(path)] == []


def test_every_part_is_in_the_table() -> None:
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "pipeline").iterdir() if _is_module(path)}
    assert found <= MAY_IMPORT.keys(), f"give {sorted(found - MAY_IMPORT.keys())} a line in MAY_IMPORT"


def _is_module(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.py"))
    return path.suffix == ".py" and path.stem != "__init__"


def test_the_ladder_has_no_way_back() -> None:
    reachable = {part: set(others) for part, others in MAY_IMPORT.items()}
    for _ in MAY_IMPORT:
        for others in reachable.values():
            others |= {far for near in set(others) for far in reachable[near]}
    assert [part for part, others in reachable.items() if part in others] == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("pipeline/stages/cut.py", "from pipeline.stages import split", "never import each other"),
        ("pipeline/stages/cut.py", "from ..stages.split import x", "never import each other"),
        ("pipeline/stages/cut.py", "import pipeline.store.files", "stages may import"),
        ("pipeline/media/open.py", "from pipeline import plan", "media may import"),
        ("pipeline/store/files.py", "def f():\n    from pipeline.stages.cut import x", "store may import"),
        ("pipeline/store/files.py", "import ray.data", "only pipeline/engine/ray_"),
        ("pipeline/stages/scan.py", "import av", "only pipeline/media/"),
        ("pipeline/runner.py", "from cli import main", "nothing does"),
        ("compressor/data.py", "from pipeline.store import x", "compressor may import"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert complaint in "".join(complaints(path, tmp_path))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipeline/stages/cut.py", "from pipeline.records import clip_id\nfrom pipeline import records"),
        ("pipeline/stages/clean.py", "from pipeline.stages.clean_rules import RULES"),
        ("pipeline/media/open.py", "import av\nfrom pipeline.media import frames"),
        ("pipeline/engine/ray_data.py", "import ray"),
        ("compressor/data.py", "import torch\nfrom pipeline.media.open import open_media"),
        ("pipeline/runner.py", "from pipeline.plan import PLAN"),
    ],
)
def test_a_right_import_is_let_through(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert complaints(path, tmp_path) == []


@pytest.mark.parametrize(
    "module", ["pipeline", "pipeline.records", "pipeline.stage", "pipeline.demo.videos", "compressor.config", "cli"]
)
def test_light_modules_stay_light(module: str) -> None:
    """Importing them brings in nothing heavy, and takes under half a second of CPU."""
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"start = time.process_time(); import {module}; spent = time.process_time() - start\n"
        f"print(spent, *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    best, heavy = float("inf"), [""]
    for _ in range(3):  # the first may compile, and a busy machine is slow now and then
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spent, *heavy = done.stdout.split()
        best = min(best, float(spent))
        if best < 0.5:
            break
    assert heavy == []
    assert best < 0.5
