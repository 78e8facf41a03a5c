"""What is installed from a wheel: the code, the command, and the data that the code reads by name."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a fresh wheel, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_code_and_command_and_no_tests(site: Path) -> None:
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"pipeline", "cli.py"}
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "hicom = cli:main" in entry_points.read_text(encoding="utf-8")
    assert list(site.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.parametrize("kind", ["prompts", "manifests"])
def test_an_installed_wheel_finds_its_data(site: Path, tmp_path: Path, kind: str) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(site)!r})\n"
        "from pipeline.resources import resource, resource_names\n"
        f"print(json.dumps({{n: str(resource({kind!r}, n)) for n in resource_names({kind!r})}}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: Path(path) for name, path in json.loads(done.stdout).items()}
    assert all(path.is_relative_to(site) for path in found.values())
    in_checkout = {path.name: path.read_bytes() for path in (ROOT / kind).iterdir() if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == in_checkout
