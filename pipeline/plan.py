"""The pipeline: its stages in order, and what follows from the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.records import TABLES, Grain
from pipeline.stage import Stage, digest
from pipeline.stages.clean import Clean
from pipeline.stages.cut import Cut
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.export import Export
from pipeline.stages.filter import Filter
from pipeline.stages.generate import Generate
from pipeline.stages.ingest import Ingest
from pipeline.stages.scan import Scan
from pipeline.stages.select import Select
from pipeline.stages.split import Split

PLAN: tuple[type[Stage], ...] = (
    Ingest,
    Embed,
    Select,
    Scan,
    Split,
    Dedup,
    Filter,
    Cut,
    Generate,
    Clean,
    Export,
)

SOURCES = "sources"
"""The table of listed source rows, which stands before the first stage."""


def check(plan: Sequence[type[Stage]]) -> None:
    """Prove that every column a stage reads is written upstream and that the grains meet. Raises ValueError."""
    written = {f"{SOURCES}.{column.name}" for column in TABLES[SOURCES]}
    grain = Grain.SOURCE
    for stage in plan:
        if stage.grain_in is not grain:
            raise ValueError(f"{stage.name} takes rows by {stage.grain_in}, but the stage before it writes {grain}")
        missing = [column for column in stage.reads if column not in written]
        if missing:
            raise ValueError(f"{stage.name} reads {missing}, which no stage before it writes")
        names = [column.partition(".")[2] for column in stage.reads]
        twice = {name for name in names if names.count(name) > 1 and name != stage.grain_in}
        if twice:
            raise ValueError(f"{stage.name} reads two columns named {sorted(twice)}; a row holds one of a name")
        # Extra tables hold any number of rows for a key: queries read them, stages do not.
        written |= {f"{stage.name}.{column.name}" for column in TABLES[stage.name]}
        grain = stage.grain_out


check(PLAN)


def tables_read(stage: Stage) -> tuple[str, ...]:
    """Tables whose columns a stage reads, in the order of first mention."""
    return tuple(dict.fromkeys(column.partition(".")[0] for column in stage.reads))


def fingerprints(stages: Sequence[Stage]) -> Mapping[str, str]:
    """Fingerprint of every stage: its own hash and those of the stages whose columns it reads.

    Where a stage's output ids name its content, what stands behind those ids no longer matters to later stages:
    they take that stage's own hash in place of its fingerprint.
    """
    own = {stage.name: stage.own_hash() for stage in stages}
    names_content = {stage.name: stage.names_content for stage in stages}
    result: dict[str, str] = {SOURCES: SOURCES}
    for stage in stages:
        upstream = {t: own[t] if names_content.get(t) else result[t] for t in tables_read(stage)}
        result[stage.name] = digest({"own": own[stage.name], "reads": upstream})
    return result
