"""Data files by name: in a checkout here; in an installed wheel in test_wheel.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import resources
from pipeline.resources import resource, resource_names

CHECKOUT = Path(__file__).resolve().parent.parent


def test_a_checkout_reads_its_top_level_folders() -> None:
    assert resource("prompts", "caption.md") == CHECKOUT / "prompts" / "caption.md"
    assert resource("manifests", "categories.yaml").is_file()
    assert {"caption.md", "qa.md"} <= set(resource_names("prompts"))


def test_an_installation_reads_what_lies_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "pipeline"
    for folder, text in ((package / "_data" / "prompts", "inside"), (tmp_path / "site" / "prompts", "beside")):
        folder.mkdir(parents=True)
        (folder / "caption.md").write_text(text)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resource("prompts", "caption.md").read_text() == "inside"


def test_an_incomplete_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "pipeline")
    with pytest.raises(LookupError, match="reinstall"):
        resource("manifests", "categories.yaml")


@pytest.mark.parametrize("name", ["poem.md", "../pyproject.toml", "/etc/hostname", "", ".", "caption"])
def test_a_name_that_is_not_there_is_an_error_naming_those_that_are(name: str) -> None:
    with pytest.raises(LookupError, match=r"caption\.md, qa\.md"):
        resource("prompts", name)
