"""Draws docs/demo.svg: what the end of `hicom demo` looks like in a terminal.

hicom demo --out demo-run && python docs/make_picture.py demo-run/run
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from pipeline.demo.tour import tour


def main() -> None:
    console = Console(record=True, width=110, file=io.StringIO())
    tour(sys.argv[1], console)
    console.save_svg(str(Path(__file__).with_name("demo.svg")), title="make demo")


if __name__ == "__main__":
    main()
