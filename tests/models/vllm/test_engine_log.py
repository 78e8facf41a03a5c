"""The words that an engine's processes leave behind when they fail."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.models.vllm.engine_log import CONFIG_VARIABLE, EngineLog

AS_VLLM_DOES = """
import json, logging, logging.config, os, sys
logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])))
log = logging.getLogger("vllm.v1.engine.core")
log.info("all is well")
for words in sys.argv[1:]:
    try:
        raise RuntimeError(words)
    except RuntimeError:
        log.exception("EngineCore failed to start.")
"""


def failing(log: EngineLog, *words: str) -> str:
    """What a process that fails so shows on stderr."""
    with log.kept():
        done = subprocess.run([sys.executable, "-c", AS_VLLM_DOES, *words], capture_output=True, text=True, check=True)
    return done.stderr


def test_the_last_line_of_an_error_is_kept_and_the_whole_is_shown() -> None:
    log = EngineLog()
    shown = failing(log, "no room for the KV cache")
    assert log.words() == "RuntimeError: no room for the KV cache"
    assert "Traceback" in shown and "all is well" not in shown
    log.close()


def test_of_many_errors_the_first_and_the_last_are_told_once() -> None:
    log = EngineLog()
    failing(log, "out of memory", "between", "worker failed")
    assert log.words() == "RuntimeError: out of memory; RuntimeError: worker failed"
    failing(log, "out of memory")
    assert log.words() == "RuntimeError: out of memory"
    log.close()


def test_no_error_no_words() -> None:
    log = EngineLog()
    assert log.words() == ""
    failing(log)
    assert log.words() == ""
    log.close()


def test_a_users_own_logging_config_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EngineLog()
    monkeypatch.setenv(CONFIG_VARIABLE, "/etc/mine.json")
    with log.kept():
        assert os.environ[CONFIG_VARIABLE] == "/etc/mine.json"
    assert os.environ[CONFIG_VARIABLE] == "/etc/mine.json"
    log.close()
