"""The algorithm of select: which videos the categories' quotas take, and which the random rest draws.

Both work on a stream with memory that does not grow with the number of videos, and their result does not depend
on the order of arrival: ties of similarity go to the smaller video id, then to the category listed first.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.object_]
Assignment = Literal["exclusive", "independent"]

_MERGE_ROWS = 16_384
"""Videos gathered before they are merged into the best pairs: bounds memory and keeps the work per video small."""


class Quotas:
    """Takes `quota` videos for each category by similarity, from videos that stream by.

    - `independent`: each category takes its best videos; a video may serve several.
    - `exclusive`: all pairs (video, category), best first; a pair is taken when its video is still free and its
      category has quota left. So a video serves one category, its best match that still had room.

    Of each category only the best `quota` (independent) or `quota x categories` (exclusive) videos are held. Why
    that suffices for `exclusive`: say a category takes its r-th best video. It had room all along, so each of its
    r-1 better videos was taken when its turn came, by this category (at most quota - 1 of them) or before that by
    another one (at most quota each). Hence r <= quota x categories. A pair that is never taken changes nothing for
    the others and may be left out; and what is not among the best of a part of the stream is not among the best
    of the whole.
    """

    def __init__(self, categories: int, quota: int, assignment: Assignment) -> None:
        self._quota = quota
        self._exclusive = assignment == "exclusive"
        self._keep = quota * categories if self._exclusive else quota
        self._best: list[tuple[Scores, Ids]] = [_no_pairs() for _ in range(categories)]
        self._floor = np.full(categories, -np.inf, np.float32)  # similarity below which a new video cannot win
        self._new_ids: list[str] = []
        self._new_scores: list[Scores] = []

    @property
    def held(self) -> int:
        """Pairs in memory now."""
        return sum(len(ids) for _, ids in self._best) + len(self._new_ids) * len(self._best)

    def add(self, ids: list[str], scores_NC: Scores) -> None:
        """Videos (each id once) with their similarities [N, C] to the categories."""
        if self._quota == 0:
            return
        self._new_ids += ids
        self._new_scores.append(scores_NC)
        if len(self._new_ids) >= _MERGE_ROWS:
            self._merge()

    def assign(self) -> dict[str, list[int]]:
        """The videos taken, each with the categories that took it, best match first."""
        self._merge()
        categories = np.repeat(np.arange(len(self._best)), [len(ids) for _, ids in self._best])
        scores = np.concatenate([scores for scores, _ in self._best])
        ids = np.concatenate([ids for _, ids in self._best])
        names = sorted(set(ids))
        rank = {name: i for i, name in enumerate(names)}
        videos = np.fromiter((rank[name] for name in ids), np.int64, len(ids))
        order = np.lexsort((categories, videos, -scores))
        room = [self._quota] * len(self._best)
        taken: dict[str, list[int]] = {}
        # At most categories x keep steps, however many videos there were.
        for video, category in zip(videos[order].tolist(), categories[order].tolist(), strict=True):
            name = names[video]
            if room[category] and not (self._exclusive and name in taken):
                room[category] -= 1
                taken.setdefault(name, []).append(category)
        return taken

    def _merge(self) -> None:
        if not self._new_ids:
            return
        new_ids, new_scores = np.array(self._new_ids, object), np.concatenate(self._new_scores)
        for c, (scores, ids) in enumerate(self._best):
            wins = new_scores[:, c] >= self._floor[c]
            scores = np.concatenate([scores, new_scores[wins, c]])
            ids = np.concatenate([ids, new_ids[wins]])
            if len(ids) > self._keep:
                best = _best(scores, ids, self._keep)
                scores, ids = scores[best], ids[best]
                self._floor[c] = scores.min()
            self._best[c] = (scores, ids)
        self._new_ids, self._new_scores = [], []


class Draw:
    """Draws videos at random: those with the smallest SHA-256 of "seed:video_id".

    A video's hash depends on nothing else, so the same videos are drawn in any order of arrival, and most of them
    again when more videos come.
    """

    def __init__(self, seed: int, keep: int) -> None:
        self._seed, self._keep = seed, keep
        self._smallest: list[tuple[bytes, str]] = []
        self._bound = b"\xff" * 33  # above every digest

    @property
    def held(self) -> int:
        """Videos in memory now."""
        return len(self._smallest)

    def add(self, ids: Iterable[str]) -> None:
        for video_id in ids:
            digest = hashlib.sha256(f"{self._seed}:{video_id}".encode()).digest()
            if digest < self._bound:
                self._smallest.append((digest, video_id))
        if len(self._smallest) > 2 * self._keep:
            self._prune()

    def draw(self, count: int, without: Iterable[str]) -> list[str]:
        """`count` videos, or as many as there are, in the order drawn, none of them in `without`.

        `keep` must have been at least `count` plus the length of `without`.
        """
        self._prune()
        excluded = set(without)
        assert count + len(excluded) <= self._keep, (count, len(excluded), self._keep)
        return [video_id for _, video_id in self._smallest if video_id not in excluded][:count]

    def _prune(self) -> None:
        self._smallest.sort()
        if len(self._smallest) >= self._keep:
            del self._smallest[self._keep :]
            self._bound = self._smallest[-1][0] if self._smallest else b""


def _no_pairs() -> tuple[Scores, Ids]:
    return np.empty(0, np.float32), np.empty(0, object)


def _best(scores: Scores, ids: Ids, keep: int) -> npt.NDArray[np.intp]:
    """Positions of the `keep` best pairs; at the border the smaller ids."""
    border = np.partition(scores, len(scores) - keep)[len(scores) - keep]
    above, ties = np.flatnonzero(scores > border), np.flatnonzero(scores == border)
    missing = keep - len(above)
    if len(ties) > missing:
        ties = np.array(heapq.nsmallest(missing, ties.tolist(), key=ids.__getitem__), np.intp)
    return np.concatenate([above, ties])
