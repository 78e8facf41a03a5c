"""What vLLM's processes say of their own failure. Its exceptions hold no more than "see the stack trace above", which
went to a log that the user of a Ray actor never sees; the row of a rejected clip and the message of an engine that does
not start have to hold the engine's words.

vLLM takes a logging config from a file that an environment variable names. Ours writes errors to a file too.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG_VARIABLE, LEVEL_VARIABLE = "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL"
_RECORD, _PID_END = "\x1e", "\x1f"
_MOST_CHARACTERS = 600
"""Of the words that are passed on."""


class EngineLog:
    """The errors of one engine's processes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hicom-vllm-")
        self._errors = Path(self._folder.name, "errors.log")

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Processes that are started meanwhile write their errors here; unless the user has a logging config."""
        if CONFIG_VARIABLE in os.environ or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
            yield
            return
        path = Path(self._folder.name, "logging.json")
        path.write_text(json.dumps(self._config()), encoding="utf-8")
        os.environ[CONFIG_VARIABLE] = str(path)
        try:
            yield
        finally:
            del os.environ[CONFIG_VARIABLE]

    def words(self) -> str:
        """The last lines of the first and the last error that another process than this one logged; "" for none."""
        try:
            text = self._errors.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        said = []
        for record in text.split(_RECORD)[1:]:
            pid, _, message = record.partition(_PID_END)
            if pid != str(os.getpid()) and message.strip():
                said.append(message.strip().splitlines()[-1].strip())
        # A worker's own error comes first; the processes above it then say that their worker failed.
        return "; ".join(dict.fromkeys([*said[:1], *said[-1:]]))[:_MOST_CHARACTERS]

    def close(self) -> None:
        self._folder.cleanup()

    def _config(self) -> dict[str, Any]:
        """For logging.config.dictConfig. What goes to stderr is what vLLM itself would print, from warnings up."""
        errors = {
            "class": "logging.FileHandler",
            "filename": str(self._errors),
            "delay": True,
            "level": "ERROR",
            "formatter": "errors",
        }
        shown = {
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stderr",
            "level": os.environ.get(LEVEL_VARIABLE, "WARNING"),
            "formatter": "shown",
        }
        formatters = {
            "errors": {"format": f"{_RECORD}%(process)d{_PID_END}%(message)s"},
            "shown": {
                "format": "%(levelname)s %(asctime)s [vLLM %(process)d] %(message)s",
                "datefmt": "%m-%d %H:%M:%S",
            },
        }
        logger = {"handlers": ["errors", "shown"], "level": shown["level"], "propagate": False}
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": formatters,
            "handlers": {"errors": errors, "shown": shown},
            "loggers": {"vllm": logger},
        }
