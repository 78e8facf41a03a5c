"""The local engine: the same workers in this process, without Ray. For debugging and for tests of stages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time

import pyarrow as pa

from pipeline.engine.task import Answer, MapTask, ModelHung, OnceAnswer, Patience, Progress, Silence, not_loaded_again
from pipeline.engine.worker import StageWorker
from pipeline.stage import Chunk, Model, ModelDied, TwoStepStage, UserError


class LocalEngine:
    """Runs a stage's items one worker after another in this process."""

    name = "local"

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Progress, *, batch_size: int) -> None:
        """Work on all items. Raises what the worker raises."""
        model = LocalModel(task) if isinstance(task.stage, TwoStepStage) else None
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

    def __init__(self, task: MapTask) -> None:
        assert isinstance(task.stage, TwoStepStage)
        self._stage = task.stage
        self._model: Model = self._stage.load_model()
        self._patience = Patience(task)
        self.silence = Silence()
        self._timeout_s = task.limits.infer_timeout_s
        self._life = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{self._stage.name}-model", daemon=True)
        self._thread.start()

    def submit(self, chunk: Chunk) -> Answer:
        call = asyncio.run_coroutine_threadsafe(self._infer(self._model, chunk), self._loop)
        return _LocalAnswer(self, call, self._life, self._timeout_s)

    async def _infer(self, model: Model, chunk: Chunk) -> Chunk:
        with self.silence.call():
            return await model.infer(chunk)

    def answered(self) -> None:
        self._patience.answered()

    def died(self, life: int, words: str) -> None:
        """A call of this life of the model met its death: load it again, unless another call met it before."""
        if life != self._life:
            return
        self._life += 1
        self._drop_model()
        self._patience.died(words)
        try:
            self._model = self._stage.load_model()
        except UserError as err:
            raise not_loaded_again(self._stage.name, words, str(err)) from err

    def close(self) -> None:
        """End the model and the loop, and whatever a stage that failed left unanswered."""
        self._drop_model()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _drop_model(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        with contextlib.suppress(Exception):  # it has answered all it will be asked
            self._model.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _LocalAnswer(OnceAnswer):
    def __init__(self, model: LocalModel, call: concurrent.futures.Future[Chunk], life: int, timeout_s: float) -> None:
        self._model = model
        self._call = call
        self._life = life
        self._timeout_s = timeout_s
        self._late = time.monotonic() + timeout_s

    def done(self) -> bool:
        return self._call.done()

    def _wait(self) -> Chunk:
        try:
            answer = self._in_time()
        except ModelDied as err:
            died = err
        except concurrent.futures.CancelledError:
            died = ModelDied("it died under another call")
        else:
            self._model.answered()
            return answer
        self._model.died(self._life, str(died))
        raise died

    def _in_time(self) -> Chunk:
        """Wait as long as the model answers anybody. Raises ModelHung when it does not."""
        left = self._late - time.monotonic()
        while True:
            try:
                return self._call.result(max(0.0, left))
            except TimeoutError:
                if self._call.done():
                    return self._call.result()  # it came just now, or these are the model's own words
                left = self._timeout_s - self._model.silence.seconds()
                if left <= 0:
                    raise ModelHung(f"no answer within {self._timeout_s:g} s") from None
