"""The dataset card: true figures, escaped text, snippets that run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from pipeline.export import card
from pipeline.export.rows import COLUMNS
from pipeline.stages.export import Export, ExportConfig
from tests.stages.export_store import Folder, Rows, clip

NASTY = "<script>alert(1)</script>\n# Heading | *bold* [x](javascript:y) `code`\n```\n---\u2028end"


def make(run: Path, count: int = 21, recipe: dict[str, Any] | None = None, **other: Any) -> str:
    rows = [clip(index, run, **other) for index in range(count)]
    Export(ExportConfig(rows_per_shard=8), recipe).run(Rows(rows), Folder(run))
    return (run / "export/README.md").read_text()


def block(text: str, language: str) -> str:
    """The only code block of a language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return str(code)


def test_figures(tmp_path: Path) -> None:
    text = make(tmp_path)
    assert "21 clips, 7 source videos, 42 instruction-answer pairs; a clip is 8.00 s long" in text
    assert "| ego4d | 7 | 7 | 33.3% | 14 | 8.00 |" in text
    assert "| panda70m | 7 | 14 | 66.7% | 28 | 8.00 |" in text
    assert "| **all** | 7 | 21 | 100.0% | 42 | 8.00 |" in text
    assert "| a person cooks \\| eats | 15 |" in text
    assert "| *none: drawn at random* | 6 |" in text
    assert "Clips by the way they were cut: copy 19, virtual 2." in text
    assert "2 virtual clips have no file" in text


def test_front_matter(tmp_path: Path) -> None:
    _, front, _ = make(tmp_path).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "unknown"
    assert values["size_categories"] == ["n<1K"]
    assert values["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    pairs = [{"index": 0, "instruction": NASTY, "answer": NASTY}]
    text = make(tmp_path, caption=NASTY, dataset=NASTY, category=NASTY, pairs=pairs)
    assert "<script>" not in text
    shown = card.escape(NASTY)
    assert text.count(shown) == 2 * 3 + 2
    assert "\n" not in shown and "\u2028" not in shown
    assert not re.search(r"(?<!\\)[|*`\[\]]", shown)


def test_every_column_is_explained(tmp_path: Path) -> None:
    text = make(tmp_path)
    for column in COLUMNS:
        assert re.search(rf"^\| `{column.name}` \| `.+` \| .+ \|$", text, flags=re.MULTILINE), column.name


def test_the_sql_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = make(tmp_path)
    monkeypatch.chdir(tmp_path / "export")
    found = duckdb.connect().sql(block(text, "sql"))
    assert found.columns == ["clip_id", "clip_path", "instruction", "answer"]
    assert len(found.fetchall()) == 42


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = make(tmp_path)
    monkeypatch.chdir(tmp_path / "export")
    names: dict[str, Any] = {}
    exec(block(text, "python"), names)
    assert names["clips"].num_rows == 21


def test_the_trainers_data_file_names_what_is_there(tmp_path: Path) -> None:
    (data,) = yaml.safe_load(block(make(tmp_path), "yaml"))["datasets"]
    assert (tmp_path / "export" / data["json_path"]).is_file()
    assert (tmp_path / "export" / data["data_root"]).is_dir()


def test_recipe_and_limits(tmp_path: Path) -> None:
    recipe = {"profile": "demo", "split": {"threshold": 45.0}}
    text = make(tmp_path / "a", recipe=recipe)
    (shown,) = re.findall(r"~~~~~~yaml\n(.*?)~~~~~~", text, flags=re.DOTALL)
    assert yaml.safe_load(shown) == recipe
    assert "no substitute" in text and "builtin:observer@1" in text
    other = make(tmp_path / "b", describer="qwen2_vl:Qwen/Qwen2-VL-72B-Instruct@main")
    assert "no substitute" not in other and "run.yaml" in other


@pytest.mark.parametrize(
    ("clips", "expected"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (248_328, "100K<n<1M"), (10**8, "n>100M")],
)
def test_size_category(clips: int, expected: str) -> None:
    assert card._size_category(clips) == expected
