"""Removing what no view reaches: parts of other fingerprints, clips that no live row names, leftovers of kills."""

from __future__ import annotations

from collections import Counter

from pipeline.store.live import Live

FOLDERS = ("tables", "rejects", "metrics")
"""Where parts lie. tables/ first: a kill in between leaves no part without its rejects."""


def collect_garbage(live: Live, *, dry_run: bool) -> dict[str, int]:
    """Remove unreachable files; how many of each kind, and their bytes. Call with the lock held.

    A part stays while one of its rows is live. Results of another config that could be gone back to are garbage
    too: that is what gc is for.
    """
    files = live.files
    keep = _reachable(live)
    removed: Counter[str] = Counter()
    for path in (*(path for folder in (*FOLDERS, "clips") for path in files.list(folder)), *files.list_temporary()):
        if path in keep:
            continue
        removed[path.partition("/")[0]] += 1
        removed["bytes"] += files.size(path) or 0
        if not dry_run:
            files.remove(path)
    return dict(removed)


def _reachable(live: Live) -> set[str]:
    keep: set[str] = set()
    for name, node in live.nodes.items():
        live.load(name)
        if node.whole_set:
            marker = live.marker(name)
            if marker is not None:
                keep.update(marker["parts"], marker["reject_parts"], *marker["extra_parts"].values())
            continue
        query = f"SELECT part FROM live_{name} UNION SELECT part FROM rejects_{name}"
        if node.grain_in is not node.grain_out:  # an amended item's own row: it counts again when its twin leaves
            query += f" UNION SELECT part FROM twins_{name}"
        used = live.keys(query)
        keep.update(f"{folder}/{part.partition('/')[2]}" for part in used for folder in FOLDERS)
    return keep | _clips(live)


def _clips(live: Live) -> set[str]:
    """Files of live clips, and the sidecars beside them."""
    uris = live.keys(
        f"SELECT clip_uri FROM {live.scan_sql('cut')} d SEMI JOIN live_cut l "
        "ON l.file = d.file_index AND l.row = d.file_row_number WHERE clip_uri IS NOT NULL"
    )
    return {path for uri in uris for path in (uri, uri.rpartition(".")[0] + ".json")}
