"""Forgetting rejects, so that the next run tries those items again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.files import Files
from pipeline.store.live import Live, Node
from pipeline.store.lock import Epoch
from pipeline.store.tables import ItemResult, PartWriter, from_arrow


def forget(live: Live, reason: str, epoch: Epoch) -> int:
    """Make every item that has a live reject of this reason pending again; how many they are.

    An item is forgotten whole: of a video with one failed clip, all clips are cut again, to the same bytes. The
    other items of its part go to a new part first, then the old part's commit is taken back, so that a kill in
    between leaves both and changes no view.
    """
    total = 0
    for name, node in live.nodes.items():
        live.load(name)
        items = {str(k) for k in live.keys(f"SELECT DISTINCT id FROM rejects_{name} WHERE reason = '{reason}'")}
        if not items:
            continue
        total += len(items)
        if node.whole_set:
            live.files.remove(f"markers/{name}.json")
            continue
        for part in live.parts(name):
            _rewrite(live.files, node, part, items, epoch)
        live.files.remove(f"markers/{name}.json")
        live.refresh(name)
    return total


def _rewrite(files: Files, node: Node, part: str, items: set[str], epoch: Epoch) -> None:
    name = part.rpartition("/")[2]
    paths = {kind: f"{kind}/{node.name}/{name}" for kind in ("rejects", "metrics", "tables")}
    results: dict[str, ItemResult] = {}
    for kind, path in paths.items():
        if files.size(path) is None:
            continue
        with files.open(path) as handle:
            table = pq.read_table(handle)
        key = node.grain_in.value if kind == "tables" else "id"
        if kind == "rejects" and not pc.any(pc.is_in(table["id"], value_set=pa.array(sorted(items), pa.string()))).as_py():
            return
        for row in from_arrow(table):
            result = results.setdefault(row[key], ItemResult(row[key]))
            if kind == "tables":
                result.rows.append(row)
            elif kind == "rejects":
                result.rejects.append(row)
            else:
                result.metrics = row
    if not items & set(results):
        return
    kept = [result for key, result in results.items() if key not in items and (result.rows or result.rejects)]
    if kept:
        PartWriter(files, node.name, node.fingerprint, epoch).commit(kept)
    for kind in ("tables", "rejects", "metrics"):
        files.remove(paths[kind])
