"""What `hicom demo` does around the run: the videos before, a look at the result after."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.commands import status
from pipeline.demo.videos import write_demo_videos
from pipeline.query import open_query
from pipeline.session import read_session
from pipeline.show import funnel

SAMPLES = 3


def prepare(folder: str) -> tuple[list[Path], str]:
    """Write the demo's videos; their paths and the run folder beside them."""
    return write_demo_videos(Path(folder) / "videos"), str(Path(folder) / "run")


def tour(run: str, console: Console) -> None:
    """Print the funnel, a few clips with caption and pairs, and what to try next."""
    console.print(funnel(status(run)))
    con = open_query(read_session(run))
    clips = con.execute(
        "SELECT clip_id, source_key, start_s, end_s, category, caption FROM clips WHERE pairs > 0 "
        f"QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY start_s) = 1 ORDER BY source_key LIMIT {SAMPLES}"
    ).fetchall()
    for clip in clips:
        pairs = con.execute(
            "SELECT instruction, answer FROM pairs WHERE clip_id = ? ORDER BY pair", [clip[0]]
        ).fetchall()
        _print_clip(console, clip, pairs)
    console.print("\nNext:", highlight=False)
    for words in (
        f"query {run}",
        f"query {run} 'SELECT category, count(*) AS clips FROM clips GROUP BY category'",
        f"rejects {run}",
        f"stats {run}",
        f"run --out {run} --set split.threshold=30",
        "run MY_VIDEOS --profile demo --out MY_RUN",
    ):
        console.print(f"  {_hicom()} {words}", markup=False, highlight=False, soft_wrap=True)


def _hicom() -> str:
    """How to call this program from here: by its name, or by its path when it is not on the search path, as after
    `make demo`."""
    called = Path(sys.argv[0])
    return os.path.relpath(called) if called.name == "hicom" and not shutil.which("hicom") else "hicom"


def _print_clip(console: Console, clip: tuple[Any, ...], pairs: list[tuple[str, str]]) -> None:
    _, source, start_s, end_s, category, caption = clip
    console.print(f"\n[bold]{escape(source)}[/] {start_s:.1f}-{end_s:.1f} s, {escape(category or 'drawn at random')}")
    console.print(f"  {escape(caption)}", highlight=False)
    for instruction, answer in pairs:
        console.print(f"  Q: {escape(instruction)}\n  A: {escape(answer)}", highlight=False)
