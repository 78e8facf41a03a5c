"""Breaks a run on purpose, and keeps a trace of its work. Every Python process with this folder on PYTHONPATH loads it.

$HICOM_TEST_FAULTS names a folder. `trace.log` in it takes a line `STEP NAME ID TIME` for every step of work: `stage` (a
stage starts), `begin` and `done` (an attempt at an item), `job` (a guarded job), `load` (a model), `request` (to vLLM's
engine). `rules.json` lists what to break, each rule one of

    {"kill": "put_file" | "put", "match": REGEX, "nth": 1, "when": "before" | "after", "who": "all" | "self"}
    {"item": STAGE, "match": REGEX}              the worker dies each time it takes up such an item
    {"decoder": JOB, "match": REGEX, "how": "crash" | "hang"}   the guarded child dies or hangs on such a file
    {"model": STAGE, "nth": 1 | "each"}          the model's process dies at its nth call, once in the run, or at each

A `kill` rule fires once, at the nth time (over all processes) that a path of the run folder matches. `all` are the
processes with the same $HICOM_TEST_TOKEN: the driver, its workers and their children, the one that finds the rule last.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

FOLDER = Path(os.environ["HICOM_TEST_FAULTS"]) if "HICOM_TEST_FAULTS" in os.environ else None


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules of one kind, as they are now: a test may change them between two commands."""
    assert FOLDER is not None
    try:
        return [rule for rule in json.loads((FOLDER / "rules.json").read_text()) if kind in rule]
    except FileNotFoundError:
        return []


def trace(step: str, name: str, key: str) -> None:
    assert FOLDER is not None
    with open(FOLDER / "trace.log", "a") as log:
        log.write(f"{step} {name} {key} {time.time()}\n")


def due_now(rule: dict[str, Any]) -> bool:
    """Whether this is the nth time, over all processes, that the rule is met."""
    assert FOLDER is not None
    name = re.sub(r"\W+", "_", json.dumps(rule, sort_keys=True))
    count = 1
    while True:
        try:
            os.close(os.open(FOLDER / f"met-{name}-{count}", os.O_CREAT | os.O_EXCL))
            return rule.get("nth", 1) in (count, "each")
        except FileExistsError:
            count += 1


def kill_all() -> NoReturn:
    """Kill every process of this run, and this one."""
    token = f"HICOM_TEST_TOKEN={os.environ['HICOM_TEST_TOKEN']}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if token in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
    kill_self()


def kill_self() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace owner.name by a function that gets the original first."""
    original = getattr(owner, name)

    @functools.wraps(original)  # Ray looks at the signature
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, wrapped)


def break_files(module: ModuleType) -> None:
    def put(original: Callable[..., Any], files: Any, *args: Any) -> None:
        relative = args[1] if original.__name__ == "put_file" else args[0]
        due = [
            rule
            for rule in rules("kill")
            if rule["kill"] == original.__name__ and re.search(rule["match"], relative) and due_now(rule)
        ]
        if not due or due[0].get("when") != "before":
            original(files, *args)
        if due:
            kill_all() if due[0].get("who", "all") == "all" else kill_self()

    for files in (module.LocalFiles, module.RemoteFiles):
        wrap(files, "put", put)
        wrap(files, "put_file", put)


def break_attempts(module: ModuleType) -> None:
    def begins(original: Callable[..., Any], attempts: Any, what: Any) -> Any:
        row = what.row if hasattr(what, "row") else what
        stage = attempts._stage
        key = row[stage.grain_in.value]
        trace("begin", stage.name, key)
        for rule in rules("item"):
            if rule["item"] == stage.name and re.search(rule["match"], key):
                kill_self()
        return original(attempts, what)

    def ends(original: Callable[..., Any], attempts: Any, job: Any, *args: Any) -> Any:
        result = original(attempts, job, *args)
        trace("done", attempts._stage.name, result.key)
        return result

    wrap(module.Attempts, "run", begins)
    wrap(module.Attempts, "begin", begins)
    wrap(module.Attempts, "_done", ends)
    wrap(module.Attempts, "_rejected", ends)


def break_decoder(module: ModuleType) -> None:
    def serve(original: Callable[..., Any], request: dict[str, Any], *args: Any) -> None:
        uri = str(request["args"].get("uri", ""))
        trace("job", request["job"], uri.rpartition("/")[2].replace(" ", "_"))
        for rule in rules("decoder"):
            if rule["decoder"] == request["job"] and re.search(rule["match"], uri):
                if rule["how"] == "crash":
                    kill_self()
                time.sleep(3600)
        original(request, *args)

    wrap(module, "_serve", serve)


def break_model(module: ModuleType) -> None:
    answer = module._ModelActor.infer

    async def infer(actor: Any, chunk: Any) -> Any:
        for rule in rules("model"):
            if rule["model"] == actor._stage.name and due_now(rule):
                kill_self()
        return await answer(actor, chunk)

    def load(original: Callable[..., Any], actor: Any) -> Any:
        trace("load", actor._stage.name, "model")
        return original(actor)

    wrap(module._ModelActor, "_load", load)
    module._ModelActor.infer = infer


def trace_requests(module: ModuleType) -> None:
    def stream(original: Callable[..., Any], engine: Any, prompt: Any, sampling: Any, priority: int) -> Any:
        [name] = prompt["multi_modal_uuids"]["video"]
        trace("request", "generate", f"{name}-priority{priority}-limit{sampling.max_tokens}")
        return original(engine, prompt, sampling, priority)

    wrap(module.VllmEngine, "_stream", stream)


def trace_stages(module: ModuleType) -> None:
    def run_stage(original: Callable[..., Any], runner: Any, stage: Any, **options: Any) -> Any:
        trace("stage", stage.name, "-")
        return original(runner, stage, **options)

    wrap(module.Runner, "_run_stage", run_stage)


BREAKS: dict[str, Callable[[ModuleType], None]] = {
    "pipeline.store.files": break_files,
    "pipeline.engine.attempt": break_attempts,
    "pipeline.engine.ray_models": break_model,
    "pipeline.media.guard_child": break_decoder,
    "pipeline.models.vllm.engine": trace_requests,
    "pipeline.runner": trace_stages,
}


class Finder(importlib.abc.MetaPathFinder):
    """Breaks a module as soon as it is imported, and costs the other imports nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in BREAKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            BREAKS[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER is not None:
    sys.meta_path.insert(0, Finder())
