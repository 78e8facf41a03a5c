"""What a worker lends to a stage: guarded decoding, the run folder's files, a scratch folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.engine.limits import EngineConfig
from pipeline.stage import Chunk
from pipeline.store.files import Files


class EngineWorkspace:
    """One worker's workspace (see stage.Workspace). The decoder's child process starts with the first guarded job."""

    def __init__(self, files: Files, limits: EngineConfig) -> None:
        self._files = files
        self._limits = limits
        self._guard: Any = None
        self._scratch: str | None = None

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        if self._guard is None:
            from pipeline.media.guard import Deadline, Guard

            limits = self._limits
            deadline = Deadline(limits.deadline_base_s, limits.deadline_per_media_s, limits.unknown_media_s)
            self._guard = Guard(memory_mb=limits.decode_memory_mb, deadline=deadline)
        chunks: Iterator[Chunk] = self._guard.run(job, args, media_s)
        return chunks

    def put_file(self, local_path: str, relative: str) -> None:
        self._files.put_file(local_path, relative)

    def get_json(self, relative: str) -> dict[str, Any] | None:
        body = self._files.get(relative)
        return json.loads(body) if body is not None else None

    def put_json(self, relative: str, value: Mapping[str, Any]) -> None:
        self._files.put(relative, json.dumps(value, sort_keys=True).encode())

    def locate(self, relative: str) -> str:
        return self._files.url(relative)

    def scratch_dir(self) -> str:
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix="hicom-")
        return self._scratch

    def drop_scratch(self) -> None:
        """Remove the scratch folder. After each batch: a cluster ends its workers without asking them."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def close(self) -> None:
        """End the decoder's child process and remove the scratch folder."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self.drop_scratch()
