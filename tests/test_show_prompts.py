"""Prompts written out, alone and as the conversation about a clip of a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import show_prompts
from pipeline.config import load_profile
from pipeline.models.prompts import load_prompt
from pipeline.show_prompts import conversation, files, listed
from pipeline.stage import UserError
from tests import clips
from tests.command_line import hicom, refused
from tests.run_helpers import read_tables, run_here


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one video of two clips, described by the built-in describer. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "videos").mkdir()
    clips.write_clip(folder / "videos" / "two.mp4", clips.shots(("maroon", 60), ("sky", 80)), keyframes=(60,))
    run_here(folder / "run", folder / "videos", profile="demo")
    return folder / "run"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile whose describer is one that reads prompts; no server is asked."""
    values = load_profile("demo")
    values["models"]["describer"] = {
        "family": "openai",
        "name": "some-model",
        "options": {"base_url": "http://127.0.0.1:9/v1", "fps": 1.0, "min_frames": 4, "max_frames": 32},
    }
    path = tmp_path_factory.mktemp("profile") / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def clip_ids(run: Path) -> list[str]:
    return sorted(read_tables(run).ids("cut"))


# Without a run


def test_a_prompt_is_shown_with_its_hash_its_schema_and_its_inputs_filled_in() -> None:
    shown = files("qa")
    prompt = load_prompt("qa")
    assert prompt.sha256 in shown and prompt.purpose in shown
    assert json.dumps(prompt.schema(pairs=3)) in shown
    assert prompt.render(pairs=3) in shown and "$" not in shown
    assert "input pairs: how many pairs to write; here 3" in shown


def test_all_prompts_are_shown_in_the_order_of_the_turns() -> None:
    assert files() == files("caption") + "\n\n" + files("qa")
    assert [line.split()[:2] for line in listed().splitlines()] == [
        [name, load_prompt(name).sha256[:16]] for name in ("caption", "qa")
    ]


def test_an_unknown_prompt_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="no prompt 'poem'; there are: caption, qa"):
        files("poem")


# About a clip


def test_the_two_turns_about_a_clip_are_as_the_describer_is_asked_with_the_answers_in_place(finished: Path) -> None:
    first = clip_ids(finished)[0]
    row = next(row for row in read_tables(finished).rows["generate"] if row["clip_id"] == first)
    shown = conversation(str(finished))
    assert shown.startswith(f"clip {first}: videos/two.mp4, ")
    pieces = [load_prompt("caption").render(), row["caption"], load_prompt("qa").render(pairs=3)]
    pieces += [row["raw_pairs"][0]["instruction"], row["raw_pairs"][2]["answer"]]
    places = [shown.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert "describer builtin:observer@1\nIt reads no prompts" in shown
    assert f"Described by builtin:observer@1, which saw {row['frames_used']} frames.\n" in shown
    assert "[video: 16 frames of 128 x 128 pixels, at 0." in shown


def test_another_describers_frames_are_told_as_it_would_be_shown_them(finished: Path, endpoint: str) -> None:
    shown = conversation(str(finished), profile=endpoint)
    assert "describer openai:some-model@" in shown and "reads no prompts" not in shown
    found = re.search(r"\[video: (\d+) frames of (\d+) x (\d+) pixels, at 0\.\d+, .*\d s; (\d+) video tokens\]", shown)
    assert found is not None, shown
    count, width, height, tokens = map(int, found.groups())
    assert 4 <= count <= 32 and width % 28 == height % 28 == 0
    assert tokens == count * width * height // 28**2
    assert 128 * 28**2 <= width * height <= 256 * 28**2


@pytest.mark.parametrize("profile", ["hicom248k", "small"])
def test_the_shipped_profiles_frames_are_told_without_their_weights(finished: Path, profile: str) -> None:
    shown = conversation(str(finished), "caption", profile=profile)
    found = re.search(r"\[video: (\d+) frames of \d+ x \d+ pixels, at .* s; \d+ video tokens\]", shown)
    assert found is not None and int(found.group(1)) in (12, 16), "two for each of the 6 s or 8 s"


def test_a_clip_is_named_by_the_beginning_of_its_id(finished: Path) -> None:
    second = clip_ids(finished)[1]
    assert conversation(str(finished), clip=second[:12]).startswith(f"clip {second}: ")


def test_one_turn_may_be_shown_alone(finished: Path) -> None:
    shown = conversation(str(finished), "qa")
    assert "=== turn 2" in shown and "=== turn 1" not in shown and "[video" not in shown


def test_a_clip_that_is_not_there_is_told(finished: Path) -> None:
    with pytest.raises(UserError, match=r"no clip whose id begins with 'zz'; this lists some: hicom query .*LIMIT 5'"):
        conversation(str(finished), clip="zz")


def test_a_beginning_that_two_ids_share_is_told(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = duckdb.connect()
    two.execute("CREATE TABLE two AS SELECT unnest(['c1', 'c2']) AS clip_id")
    monkeypatch.setattr(show_prompts, "open_query", lambda session: two)
    monkeypatch.setattr(show_prompts, "_CLIPS", "FROM two WHERE starts_with(clip_id, ?)")
    with pytest.raises(UserError, match=r"several clips whose id begins with 'c': c1 and c2\. Give"):
        conversation(str(finished), clip="c")


def test_before_generate_nothing_is_written_yet(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for stage in ("generate", "clean", "export"):
        shutil.rmtree(run / "tables" / stage)
        (run / "markers" / f"{stage}.json").unlink()
    shown = conversation(str(run))
    assert shown.count("(not written yet)") == 2 and "Described by" not in shown


def test_prompts_that_changed_since_the_clip_was_described_are_named(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    hashes = json.dumps({"caption": load_prompt("caption").sha256, "qa": "0" * 64})
    for part in (run / "tables" / "generate").glob("*.parquet"):
        table = pq.read_table(part)
        place = table.schema.get_field_index("prompt_hashes")
        column = pa.array([hashes] * len(table), pa.string())
        pq.write_table(table.set_column(place, table.schema.field(place), column), part)
    assert "frames, with other words than today's in: qa." in conversation(str(run))


# The command


def test_the_command_shows_files_and_conversations(finished: Path) -> None:
    assert hicom("prompts", "show").out == files() + "\n"
    assert hicom("prompts", "list").out == listed() + "\n"
    assert hicom("prompts", "show", "caption", "--run", finished).out == conversation(str(finished), "caption") + "\n"


@pytest.mark.parametrize("option", [("--clip", "c"), ("--profile", "demo")])
def test_a_clip_or_a_describer_is_of_a_run(option: tuple[str, str]) -> None:
    assert "need --run RUN" in refused("prompts", "show", *option)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "is not a run folder" in refused("prompts", "show", "--run", tmp_path / "nowhere")
