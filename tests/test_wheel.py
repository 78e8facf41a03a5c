"""What is installed from a wheel: the code, the command, and the data that the code reads by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT


def test_the_wheel_holds_code_and_command_and_no_tests(wheel_site: Path) -> None:
    tops = {path.name for path in wheel_site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"pipeline", "compressor", "cli.py"}
    (entry_points,) = wheel_site.glob("*.dist-info/entry_points.txt")
    assert "hicom = cli:main" in entry_points.read_text(encoding="utf-8")
    assert list(wheel_site.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.parametrize("kind", ["prompts", "manifests"])
def test_an_installed_wheel_finds_its_data(wheel_site: Path, tmp_path: Path, kind: str) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(wheel_site)!r})\n"
        "from pipeline.resources import resource, resource_names\n"
        f"print(json.dumps({{n: str(resource({kind!r}, n)) for n in resource_names({kind!r})}}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: Path(path) for name, path in json.loads(done.stdout).items()}
    assert all(path.is_relative_to(wheel_site) for path in found.values())
    in_checkout = {path.name: path.read_bytes() for path in (CHECKOUT / kind).iterdir() if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == in_checkout
