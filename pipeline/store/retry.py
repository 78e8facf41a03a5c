"""Forgetting rejects, so that the next run tries those items again."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import METRICS, REJECTS, to_schema
from pipeline.store.files import Files
from pipeline.store.live import AMENDMENT, Live, Node
from pipeline.store.lock import Epoch
from pipeline.store.tables import PartWriter


def forget(live: Live, reason: str, epoch: Epoch) -> int:
    """Make every item that has a live reject of this reason pending again; how many they are. Raises LockLost."""
    total = 0
    for name in live.nodes:
        live.load(name)
        items = live.con.execute(f"SELECT DISTINCT id FROM rejects_{name} WHERE reason = ?", [reason]).fetchall()
        forget_items(live, name, [key for (key,) in items], epoch)
        total += len(items)
    return total


def forget_items(live: Live, name: str, items: Sequence[str], epoch: Epoch) -> None:
    """Make these items of a stage pending again. Raises LockLost.

    An item is forgotten whole: of a video with one failed clip, all clips are cut again, to the same bytes. The
    other items of its part go to a new part first, then the old part's commit is taken back, so that a kill in
    between leaves both and changes no view.
    """
    if not items:
        return
    node = live.nodes[name]
    epoch.check(live.files)
    if not node.whole_set:
        keys = pa.array(items, pa.string())
        for part in live.parts(name):
            if f"-{AMENDMENT}" not in part:  # void by itself once the row that it amends is gone
                _rewrite(live.files, node, part, keys, epoch)
    live.files.remove(f"markers/{name}.json")
    live.refresh(name)


def _rewrite(files: Files, node: Node, part: str, items: pa.Array, epoch: Epoch) -> None:
    """Replace a part by one without these items. The kept rows are the very values that were there."""
    paths = {folder: f"{folder}/{part.partition('/')[2]}" for folder in ("tables", "rejects", "metrics")}
    rejects = _read(files, paths["rejects"], to_schema(REJECTS).empty_table())
    with files.open(part) as handle:
        keys = pq.read_table(handle, columns=[node.grain_in.value])[0]
    if not any(pc.any(pc.is_in(held, value_set=items)).as_py() for held in (rejects["id"], keys)):
        return
    metrics = _read(files, paths["metrics"], to_schema(METRICS).empty_table())
    rows = _read(files, paths["tables"], None)
    kept = [
        table.filter(pc.invert(pc.is_in(table[key], value_set=items)))
        for table, key in ((rows, node.grain_in), (rejects, "id"), (metrics, "id"))
    ]
    if kept[0].num_rows or kept[1].num_rows:
        PartWriter(files, node.name, node.fingerprint, epoch).commit_tables(*kept)
    for path in paths.values():  # tables/ first: without it the others do not count
        files.remove(path)


def _read(files: Files, path: str, missing: pa.Table | None) -> pa.Table:
    if missing is not None and files.size(path) is None:
        return missing
    with files.open(path) as handle:
        return pq.read_table(handle)
