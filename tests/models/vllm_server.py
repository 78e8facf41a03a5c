"""vLLM's own OpenAI-compatible server on loopback, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.models import tiny_qwen2vl

NAME, KEY = "tiny-qwen2-vl", "sk-loopback-1"
START_S = 120
"""Most seconds until it answers."""


class VllmServer:
    """A server of the tiny Qwen2-VL. Starts at once; `wait` until it answers."""

    def __init__(self, checkpoint: Path, log: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.log = log
        options = tiny_qwen2vl.OPTIONS
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
        command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
        command += ["--max-model-len", str(options["max_model_len"]), "--max-num-seqs", str(options["max_num_seqs"])]
        command += ["--kv-cache-memory-bytes", str(options["kv_cache_bytes"]), "--enforce-eager"]
        # On CPUs vLLM 0.31 dies of a seeded prompt that it takes in two steps; so many tokens go in one.
        command += ["--max-num-batched-tokens", "16384"]
        command += ["--distributed-executor-backend", "uni", "--enable-prompt-tokens-details", *flags]
        structured = {"backend": "xgrammar", "disable_any_whitespace": True}
        command += ["--structured-outputs-config", json.dumps(structured)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **tiny_qwen2vl.ENVIRONMENT, "VLLM_NO_USAGE_STATS": "1"},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        late = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < late, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """End it and its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
