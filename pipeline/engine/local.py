"""The local engine: the same workers in this process, without Ray. For debugging and for tests of stages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pyarrow as pa

from pipeline.engine.task import Answer, MapTask, Progress
from pipeline.engine.worker import StageWorker
from pipeline.stage import Chunk, Model, TwoStepStage


class LocalEngine:
    """Runs a stage's items one worker after another in this process."""

    name = "local"

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Progress, *, batch_size: int) -> None:
        """Work on all items. Raises what the worker raises."""
        model = LocalModel(task.stage) if isinstance(task.stage, TwoStepStage) else None
        worker = StageWorker(task, model)
        try:
            for start in range(0, pointers.num_rows, batch_size):
                for tally in worker.process(pointers.slice(start, batch_size)):
                    progress(tally)
        finally:
            worker.close()
            if model is not None:
                model.close()

    def close(self) -> None:
        """Nothing outlives a stage."""


class LocalModel:
    """A model on an event loop of its own thread, so that prepare and infer overlap here too."""

    def __init__(self, stage: TwoStepStage) -> None:
        self._model: Model = stage.load_model()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{stage.name}-model", daemon=True)
        self._thread.start()

    def submit(self, chunk: Chunk) -> Answer:
        return _LocalAnswer(asyncio.run_coroutine_threadsafe(_infer(self._model, chunk), self._loop))

    def close(self) -> None:
        """End the loop, and whatever a stage that failed left unanswered."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _infer(model: Model, chunk: Chunk) -> Chunk:
    return await model.infer(chunk)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _LocalAnswer:
    def __init__(self, future: concurrent.futures.Future[Chunk]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Chunk:
        return self._future.result()
