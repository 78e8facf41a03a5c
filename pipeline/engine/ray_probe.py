"""Looks at every node of a Ray cluster before work starts: same program, same run folder, same inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.stage import UserError
from pipeline.store.files import Files

PROBE_S = 60.0
"""Seconds a node may take to answer: it starts a Python process and imports this package."""


def probe_nodes(files: Files, seen_by_driver: str, inputs: Sequence[str]) -> None:
    """Raises UserError naming the nodes that do not see what the driver sees, and what to do."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        ray.remote(_look)
        .options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        .remote(files, seen_by_driver, list(inputs))
        for node in nodes
    ]
    problems = []
    for node, ref in zip(nodes, asked, strict=True):
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        problems += [f"  {name}: {problem}" for problem in _answer(ref)]
    if problems:
        raise UserError("not every node of the cluster can do this run:\n" + "\n".join(problems))


def _answer(ref: Any) -> list[str]:
    try:
        found = ray.get(ref, timeout=PROBE_S)
    except ray.exceptions.GetTimeoutError:
        return [f"did not answer within {PROBE_S:.0f} s"]
    except ray.exceptions.RayError as err:
        last = str(err).strip().splitlines()[-1]
        return [f"cannot run this program ({last}); install the same hicom-248k-builder on every node"]
    problems = list(found["problems"])
    if found["code"] != code_hash():
        problems.append("has another version of this program; install the same hicom-248k-builder on every node")
    return problems


def _look(files: Files, seen_by_driver: str, inputs: list[str]) -> dict[str, Any]:
    """Runs on a node: what it lacks."""
    problems = []
    if files.size(seen_by_driver) is None:
        problems.append(f"does not see the run folder {files.root}; use a shared disk or an object store for --out")
    problems += [
        f"does not see the input {path}; use a shared disk or an object store"
        for path in inputs
        if not os.path.exists(path)
    ]
    return {"problems": problems, "code": code_hash()}


def code_hash() -> str:
    """Hash of this package's source files: the same on two nodes when they run the same program."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
