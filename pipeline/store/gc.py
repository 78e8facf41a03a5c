"""Removing what no view reaches: parts of other fingerprints, clips that no live row names, leftovers of kills."""

from __future__ import annotations

from collections import Counter

from pipeline.store.live import Live

FOLDERS = ("tables", "rejects", "metrics")


def collect_garbage(live: Live, *, dry_run: bool) -> dict[str, int]:
    """Remove unreachable files; how many of each kind. Call with the lock held.

    A part stays while one of its rows is live. Results of another config that could be gone back to are garbage
    too: that is what gc is for.
    """
    files = live.files
    keep = _reachable(live)
    removed: Counter[str] = Counter()
    candidates = [path for folder in FOLDERS for path in files.list(folder)] + files.list("clips") + files.list_temporary()
    for path in candidates:
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
        marker = live.marker(name) or {}
        used = set(live.keys(f"SELECT DISTINCT part FROM live_{name}"))
        used |= {p.replace("rejects/", "tables/", 1) for p in live.keys(f"SELECT DISTINCT part FROM rejects_{name}")}
        if node.whole_set:
            used |= set(live.parts(name))
            keep |= set(live.reject_parts(name))
            keep |= {path for paths in marker.get("extra_parts", {}).values() for path in paths}
        for part in used:
            keep |= {part, part.replace("tables/", "rejects/", 1), part.replace("tables/", "metrics/", 1)}
    return keep | _clips(live)


def _clips(live: Live) -> set[str]:
    """Files of live clips, and the sidecars beside them."""
    parts = [live.files.url(part) for part in live.parts("cut")]
    if not parts:
        return set()
    rows = live.con.execute(
        'SELECT clip_uri FROM read_parquet(?) d SEMI JOIN live_cut l ON l.out_key = d.clip_id WHERE clip_uri IS NOT NULL',
        [parts],
    ).fetchall()
    return {path for (uri,) in rows for path in (uri, uri.rpartition(".")[0] + ".json")}
