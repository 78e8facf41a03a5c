"""What the headers of a run's inputs say: all of them, or those of a seeded sample where there are many."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

from pipeline.config import RunConfig
from pipeline.media.guard import Deadline, Guard
from pipeline.sources.listing import list_sources
from pipeline.stage import Rejected, Row

MOST_HEADERS = 1000
"""Headers read by default. Lengths that vary as much as their mean are then known to 6% (two standard errors), and it
takes about ten seconds on two cores."""
BELIEVED_S = Deadline.max_media_s
"""A container that claims more, seconds, is taken for one that states no length."""


@dataclass(frozen=True)
class Header:
    """What a readable video's header says."""

    duration_s: float | None
    """Seconds; None when it states none, or one that cannot be."""
    fps: float | None
    width: int
    height: int
    bytes: int


@dataclass(frozen=True)
class Headers:
    """What the headers of the inputs say."""

    rows: int
    """Source rows that a run would take."""
    found: int
    """Source rows before --limit."""
    probed: int
    """Rows looked at."""
    videos: tuple[Header, ...]
    """Those of them that are readable video."""
    broken: Counter[str]
    """The others, by the reason that `ingest` would reject them for."""
    ignored: Counter[str]
    """Files in the inputs' folders that are not known as video, by extension."""

    @property
    def is_sample(self) -> bool:
        return self.probed < self.rows

    def total(self, amounts: Sequence[float]) -> float:
        """Sum over all rows of an amount, given for each readable video looked at."""
        return sum(amounts) * self.rows / self.probed if self.probed else 0.0

    def sampling_error(self, amounts: Sequence[float]) -> float:
        """Two standard errors of such a sum, as a share of it; broken rows count as nothing."""
        n, total = self.probed, sum(amounts)
        if not self.is_sample or not total:
            return 0.0
        mean = total / n
        squares = sum((amount - mean) ** 2 for amount in amounts) + (n - len(amounts)) * mean**2
        variance = squares / (n - 1) if n > 1 else mean**2
        return 2 * math.sqrt(variance * (1 - n / self.rows) / n) / mean


def read_headers(
    inputs: Sequence[str], config: RunConfig, *, limit: int | None = None, most: int = MOST_HEADERS
) -> Headers:
    """List the inputs as a run does and probe the headers of at most `most` rows, on all cores.

    The sample is the listing's own for a limit of `most`: the same at every call. Raises UserError.
    """
    listing = list_sources(inputs, config.sources, limit=most if limit is None else min(limit, most))
    videos: list[Header] = []
    broken: Counter[str] = Counter()
    for outcome in _probe(listing.rows, config):
        if isinstance(outcome, Header):
            videos.append(outcome)
        else:
            broken[outcome] += 1
    return Headers(
        rows=listing.found if limit is None else min(limit, listing.found),
        found=listing.found,
        probed=len(listing.rows),
        videos=tuple(videos),
        broken=broken,
        ignored=listing.ignored,
    )


def _probe(rows: Sequence[Row], config: RunConfig) -> Iterator[Header | str]:
    """Each row's header, or the reason why it has none."""
    limits = config.engine
    workers = max(1, min(len(rows), os.cpu_count() or 1))
    # A header has no length to grow with, and a hung probe must not hold up an estimate for hours.
    deadline = Deadline(base_s=limits.deadline_base_s, per_media_s=0.0)
    idle: SimpleQueue[Guard] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(Guard(limits.decode_memory_mb, deadline)))

        def probe(row: Row) -> Header | str:
            guard = idle.get()
            try:
                return _header(row, guard)
            finally:
                idle.put(guard)

        pool = ThreadPoolExecutor(workers)
        try:
            yield from pool.map(probe, rows)
        finally:
            pool.shutdown(cancel_futures=True)


def _header(row: Row, guard: Guard) -> Header | str:
    if row["problem"] is not None:
        return str(row["problem"])
    try:
        [probed] = guard.run("probe", {"uri": row["uri"]})
    except Rejected as rejected:
        return rejected.reason
    says = probed.info
    length = says["duration_s"]
    believed = length is not None and length <= BELIEVED_S
    return Header(length if believed else None, says["fps"], says["width"], says["height"], says["bytes"])
