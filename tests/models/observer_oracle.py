"""Drawn clips, and an oracle that knows what was drawn and judges every sentence of the built-in describer by it.

The oracle shares no code with the describer: it knows the name of the colour that each pixel was painted with, the
painted values, the slide and the cuts. A sentence that it does not know is an error, so no sentence goes unjudged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.models.protocols import ClipFrames

SIDE, COUNT, DURATION_S = 128, 16, 8.0
TIMES_S = (np.arange(COUNT) + 0.5) * DURATION_S / COUNT

PAINT = {
    "black": (8, 8, 8),
    "grey": (128, 128, 128),
    "light grey": (190, 190, 190),
    "white": (248, 248, 248),
    "orange": (245, 140, 20),
    "red": (210, 20, 20),
    "yellow": (245, 215, 30),
    "brown": (110, 66, 36),
    "beige": (214, 184, 144),
    "green": (40, 160, 40),
    "dark green": (20, 70, 24),
    "cyan": (40, 215, 215),
    "dark blue": (16, 24, 110),
    "purple": (120, 20, 140),
}
NAMES = list(PAINT)
UNNAMED = len(NAMES)
"""Label of pixels between white and black, in a fade: they may be called by the name of any grey."""
GREYS = ("black", "dark grey", "grey", "light grey", "white")

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")
_NINTHS = {f"{row} {column}": (r, c) for r, row in enumerate(_ROWS) for c, column in enumerate(_COLUMNS)}
_NINTHS["centre"] = _NINTHS.pop("middle middle")


@dataclass
class Drawn:
    """A clip as it was drawn. labels [T, H, W] index NAMES, rgb is uint8 [T, H, W, 3]."""

    labels: np.ndarray
    rgb: np.ndarray
    slide: tuple[float, float] = (0.0, 0.0)
    """Shares of the picture's width and height that all of it slides over the sampled frames."""
    breaks_s: list[tuple[float, float]] = field(default_factory=list)
    """From when to when all of the picture changes; the same time twice for a hard cut."""

    @property
    def clip(self) -> ClipFrames:
        """What the describer gets: the painted values with a little noise, as a coder would leave it."""
        noise = np.random.default_rng(7).integers(-3, 4, self.rgb.shape)
        return ClipFrames("drawn", np.clip(self.rgb + noise, 0, 255).astype(np.uint8), TIMES_S, DURATION_S)

    def luma(self, part: tuple[slice, ...] = (slice(None),)) -> np.ndarray:
        return np.asarray(self.rgb[part] @ np.array([0.299, 0.587, 0.114]))


# --- drawing


def painted(labels: np.ndarray, **facts: object) -> Drawn:
    palette = np.array(list(PAINT.values()), np.uint8)
    return Drawn(labels, palette[labels], **facts)  # type: ignore[arg-type]


def plain(name: str) -> Drawn:
    return painted(np.full((COUNT, SIDE, SIDE), NAMES.index(name)))


def shape(name: str, ground: str, size: float, ways: list[tuple[float, float]], round_: bool = False) -> Drawn:
    """A square or disc of a width (share of the picture) with its middle at ways[t], shares from left and top."""
    labels = np.full((COUNT, SIDE, SIDE), NAMES.index(ground))
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    for frame, (to_x, to_y) in zip(labels, ways, strict=True):
        dx, dy = np.abs(x - to_x), np.abs(y - to_y)
        inside = np.hypot(dx, dy) < size / 2 if round_ else np.maximum(dx, dy) < size / 2
        frame[inside] = NAMES.index(name)
    return painted(labels)


def line(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    places = np.linspace(start, end, COUNT)
    return [(float(x), float(y)) for x, y in places]


def fade() -> Drawn:
    """A third of the clip white, a third fading, a third black."""
    drawn = plain("white")
    strength = np.clip(np.linspace(2, -1, COUNT), 0, 1)[:, None, None, None]
    drawn.rgb = (drawn.rgb * strength).astype(np.uint8)
    drawn.labels[(strength < 1)[..., 0].repeat(SIDE, 1).repeat(SIDE, 2)] = UNNAMED
    drawn.labels[(strength == 0)[..., 0].repeat(SIDE, 1).repeat(SIDE, 2)] = NAMES.index("black")
    fading = np.flatnonzero((drawn.labels == UNNAMED).all(axis=(1, 2)))
    drawn.breaks_s = [(float(TIMES_S[fading[0] - 1]), float(TIMES_S[fading[-1] + 1]))]
    return drawn


def pan(names: tuple[str, ...], step_px: tuple[int, int]) -> Drawn:
    """Random blocks of colours that slide by so many pixels (right, down) a frame."""
    rng, big = np.random.default_rng(3), SIDE * 4
    blocks = rng.choice([NAMES.index(name) for name in names], size=(big // 8, big // 8)).repeat(8, 0).repeat(8, 1)
    dx, dy = step_px
    labels = np.empty((COUNT, SIDE, SIDE), int)
    for t in range(COUNT):
        top, left = SIDE - dy * (t - COUNT // 2), SIDE - dx * (t - COUNT // 2)
        labels[t] = blocks[top : top + SIDE, left : left + SIDE]
    steps = (COUNT - 1) / SIDE
    return painted(labels, slide=(dx * steps, dy * steps))


def cut(first: Drawn, second: Drawn, at: int) -> Drawn:
    """The first clip up to frame `at`, then the second."""
    time_s = float(TIMES_S[at - 1] + TIMES_S[at]) / 2
    labels, rgb = (
        (np.concatenate([a[:at], b[at:]])) for a, b in ((first.labels, second.labels), (first.rgb, second.rgb))
    )
    return Drawn(labels, rgb, breaks_s=[(time_s, time_s)])


# --- what was drawn, as the oracle sees it


def _window(region: str) -> tuple[slice, slice, slice]:
    row, column = _NINTHS[region]
    bounds = [round(SIDE * i / 3) for i in range(4)]
    return slice(None), slice(bounds[row], bounds[row + 1]), slice(bounds[column], bounds[column + 1])


def _share(labels: np.ndarray, name: str) -> tuple[float, float]:
    """Least and largest share of the pixels that may be called by the name."""
    certain = float((labels == NAMES.index(name)).mean()) if name in PAINT else 0.0
    return certain, certain + (float((labels == UNNAMED).mean()) if name in GREYS else 0.0)


def _is_colour(labels: np.ndarray, words: str) -> bool:
    """Whether pixels are "almost entirely X", "mostly X[, with some Y and Z]", "a mix of X, Y and Z" or
    "of many colours, X most of all"."""
    many = re.fullmatch(r"of many colours, (.+) most of all", words)
    if many:
        most = max(_share(labels, name)[0] for name in NAMES)
        return most - 0.02 <= _share(labels, many[1])[0] and most < 0.6
    listed = re.split(
        r", | and ", words.removeprefix("almost entirely ").removeprefix("mostly ").removeprefix("a mix of ")
    )
    names = [name.removeprefix("with some ") for name in listed]
    least = {"almost": 0.85, "mostly": 0.5, "a": 0.1}[words.split()[0]]
    if _share(labels, names[0])[1] < least or any(_share(labels, name)[1] < 0.1 for name in names[1:]):
        return False
    return len(names) == 1 or _share(labels, names[0])[0] < 0.9


def _is_brightness(luma: float, words: str) -> bool:
    lowest, highest = {
        "very dark": (0, 34),
        "dark": (26, 85),
        "of medium brightness": (75, 155),
        "bright": (145, 215),
        "very bright": (205, 256),
    }[words]
    return lowest <= luma <= highest


def _is_structure(labels: np.ndarray, words: str) -> bool:
    """By the share of pixels beside one painted in another colour."""
    edges = float(((labels[:, 1:, 1:] != labels[:, :-1, 1:]) | (labels[:, 1:, 1:] != labels[:, 1:, :-1])).mean())
    return {"smooth": edges < 0.07, "partly structured": 0.03 < edges < 0.28, "full of structure": edges > 0.2}[words]


def _middle(drawn: Drawn, name: str, frame: int) -> tuple[float, float] | None:
    """Middle of what was painted in a colour, shares from left and top."""
    if name not in PAINT:
        return None
    ys, xs = np.nonzero(drawn.labels[frame] == NAMES.index(name))
    return (float(xs.mean() + 0.5) / SIDE, float(ys.mean() + 0.5) / SIDE) if xs.size else None


def _is_in(place: tuple[float, float] | None, region: str) -> bool:
    row, column = _NINTHS[region]
    slack = 0.03
    return place is not None and all(
        at / 3 - slack <= share <= (at + 1) / 3 + slack for share, at in zip(place, (column, row), strict=True)
    )


def _goes(dx: float, dy: float, words: str, least: float = 0.1) -> bool:
    signs = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
    return all(dx * sx + dy * sy >= least for sx, sy in (signs[word] for word in words.split(" and ")))


def _spread(drawn: Drawn, name: str) -> float:
    places = [_middle(drawn, name, t) for t in range(COUNT)]
    known = np.array([place for place in places if place is not None])
    return float(np.ptp(known, axis=0).max()) if len(known) == COUNT else np.inf


def _changing(drawn: Drawn, region: str) -> float:
    """Share of a region's pixels that are not the same over the whole clip."""
    return float((np.ptp(drawn.rgb[_window(region)], axis=0).max(axis=-1) > 20).mean())


def _activity(drawn: Drawn, frames: slice = slice(None)) -> dict[str, float]:
    """Share of pixels of each region that change from frame to frame."""
    changes = np.abs(np.diff(drawn.rgb.astype(int), axis=0)).max(axis=-1)[frames] > 20
    return {region: float(changes[_window(region)].mean()) for region in _NINTHS}


def _percent(drawn: Drawn, frame: int) -> float:
    return float(drawn.luma()[frame].mean() / 2.55)


def _near(number: str, truth: float, slack: float = 2.0) -> bool:
    return abs(float(number) - truth) <= slack + 0.15 * abs(truth)


# --- sentences


def _area_starts(drawn: Drawn, name: str, region: str) -> bool:
    return _is_in(_middle(drawn, name, 0), region)


def _area_covers(drawn: Drawn, name: str, verb: str, region: str, percent: str) -> bool:
    if not _area_starts(drawn, name, region) or (verb == "lies" and _spread(drawn, name) > 0.06):
        return False
    return _near(percent, 100 * _share(drawn.labels, name)[0], slack=1)


def _area_moves(drawn: Drawn, name: str, direction: str, region: str) -> bool:
    start, end = _middle(drawn, name, 0), _middle(drawn, name, -1)
    if start is None or end is None:
        return False
    return _goes(end[0] - start[0], end[1] - start[1], direction) and _is_in(end, region)


def _area_comes_back(drawn: Drawn, name: str) -> bool:
    start, end = _middle(drawn, name, 0), _middle(drawn, name, -1)
    if start is None or end is None:
        return False
    return _spread(drawn, name) > 0.1 and np.hypot(end[0] - start[0], end[1] - start[1]) < 0.1


def _area_looks(drawn: Drawn, name: str, brightness: str, rank: str | None) -> bool:
    inside = drawn.labels == NAMES.index(name) if name in PAINT else np.zeros(drawn.labels.shape, bool)
    if not inside.any() or not _is_brightness(float(drawn.luma()[inside].mean()), brightness):
        return False
    inner, outer = drawn.luma()[inside], drawn.luma()[~inside]
    return rank is None or (inner.min() > outer.max() if rank == "bright" else inner.max() < outer.min())


def _regions_are(drawn: Drawn, regions: str, words: str) -> bool:
    return all(_is_colour(drawn.labels[_window(region)], words) for region in re.split(r", | and ", regions))


def _where(drawn: Drawn, subject: str) -> tuple[slice, ...]:
    return (slice(None),) if subject == "picture" else _window(subject)


def _looks(drawn: Drawn, subject: str, brightness: str, structure: str) -> bool:
    where = _where(drawn, subject)
    return _is_brightness(float(drawn.luma(where).mean()), brightness) and _is_structure(drawn.labels[where], structure)


def _turns(drawn: Drawn, subject: str, before: str, after: str) -> bool:
    labels, third = drawn.labels[_where(drawn, subject)], COUNT // 3
    return _share(labels[:third], before)[1] >= 0.5 and _share(labels[-third:], after)[1] >= 0.5


def _part_changes(drawn: Drawn, amount: str, region: str) -> bool:
    bounds = {
        "hardly any part": (0, 0.01),
        "a small part": (0, 0.17),
        "a good part": (0.13, 0.63),
        "nearly all": (0.57, 1),
    }
    return bounds[amount][0] <= _changing(drawn, region) <= bounds[amount][1]


def _strongest(drawn: Drawn, region: str, end_region: str | None) -> bool:
    def is_first(name: str, changes: dict[str, float]) -> bool:
        return changes[name] > 0 and changes[name] >= 0.95 * max(changes.values())

    if end_region is None:
        return is_first(region, _activity(drawn))
    third = COUNT // 3
    return is_first(region, _activity(drawn, slice(third))) and is_first(
        end_region, _activity(drawn, slice(-third, None))
    )


def _grows(drawn: Drawn, how: str, before: str | None, after: str | None) -> bool:
    first, last = (2.55 * _percent(drawn, t) for t in (0, -1))
    if not ((last - first) * (1 if how == "brighter" else -1) > 20):
        return False
    return before is None or after is None or (_is_brightness(first, before) and _is_brightness(last, after))


def _light_stays(drawn: Drawn) -> bool:
    return float(np.ptp(drawn.luma().mean(axis=(1, 2)))) < 10


def _extreme_region(drawn: Drawn, which: str, region: str) -> bool:
    lumas = {name: float(drawn.luma(_window(name)).mean()) for name in _NINTHS}
    best = max(lumas.values()) if which == "brightest" else min(lumas.values())
    return abs(lumas[region] - best) < 3 and max(lumas.values()) - min(lumas.values()) > 20


_RGN = r"((?:upper|middle|lower) (?:left|right)|(?:upper|lower) middle|centre)"
_COL = r"([a-z ]+?)"
_BRT = r"(very dark|dark|of medium brightness|bright|very bright)"
_SUBJECT = rf"(?:The|the) (?:{_RGN}|picture)"

Judge = Callable[..., bool]
_SENTENCES: list[tuple[str, Judge]] = [
    (
        r"The picture is mostly (.+) at the beginning and mostly (.+) at the end",
        lambda d, a, b: _turns(d, "picture", a, b),
    ),
    (rf"The {_RGN} is mostly (.+) at the beginning and mostly (.+) at the end", _turns),
    (
        r"The picture is ((?:almost entirely|mostly|a mix of|of many colours,) .+)",
        lambda d, words: _is_colour(d.labels, words),
    ),
    (rf"It is {_BRT} and (.+)", lambda d, b, s: _looks(d, "picture", b, s)),
    (rf"The {_RGN} is {_BRT} and (.+)", _looks),
    (
        rf"The ((?:{_RGN}(?:, | and )?)+) (?:is|are) ((?:almost entirely|mostly|a mix of|of many colours,) .+)",
        lambda d, r, _, w: _regions_are(d, r, w),
    ),
    (rf"The {_RGN} of the picture is ((?:almost entirely|mostly|a mix of|of many colours,) .+)", _regions_are),
    (rf"An? {_COL} area (lies|starts) in the {_RGN} of the picture and covers about (\d+) percent of it", _area_covers),
    (rf"The {_COL} area moves (.+) and ends in the {_RGN}", _area_moves),
    (rf"The {_COL} area stays in its place", lambda d, name: _spread(d, name) < 0.06),
    (rf"The {_COL} area moves away from its place and comes back to it", _area_comes_back),
    (rf"The {_COL} area is {_BRT}(?:, and nothing else in the picture is as (bright|dark))?", _area_looks),
    (
        r"The whole scenery slides (.+), as when a camera turns (.+)",
        lambda d, way, camera: _goes(d.slide[0], d.slide[1], way) and _goes(-d.slide[0], -d.slide[1], camera),
    ),
    (
        r"Over the clip it slides by about (\d+) percent of the picture's (width|height)",
        lambda d, far, side: _near(far, 100 * abs(d.slide[side == "height"])),
    ),
    (rf"The picture grows (brighter|darker) over the clip(?:, from {_BRT} to {_BRT})?", _grows),
    (
        r"It goes from about (\d+) to about (\d+) percent of full brightness",
        lambda d, a, b: _near(a, _percent(d, 0)) and _near(b, _percent(d, -1)),
    ),
    (r"The light stays about the same over the clip", _light_stays),
    (r"Nothing in the picture changes visibly", lambda d: all(_changing(d, region) < 0.01 for region in _NINTHS)),
    (rf"The change is strongest in the {_RGN}(?: at the beginning and in the {_RGN} at the end)?", _strongest),
    (
        r"Between ([\d.]+) and ([\d.]+) seconds nearly all of the picture changes, far more than at other times",
        lambda d, a, b: any(float(a) - 0.05 <= start <= end <= float(b) + 0.05 for start, end in d.breaks_s),
    ),
    (rf"Over the clip, (.+) of the {_RGN} changes", _part_changes),
]
_QUESTIONS: list[tuple[str, Judge]] = [
    (rf"How does the {_COL} area that starts in the {_RGN} of the picture move", _area_starts),
    (rf"Describe the {_COL} area in the {_RGN} of the picture over the clip", _area_starts),
    (r"How does the light in the whole picture change over the clip", lambda d: not _light_stays(d)),
    (
        r"How does the scenery, which is (.+), slide through the picture",
        lambda d, words: _is_colour(d.labels, words) and any(d.slide),
    ),
    (
        rf"What does the {_RGN} of the picture, where the change is strongest, look like over the clip",
        lambda d, r: _strongest(d, r, None),
    ),
    (rf"What does the (brightest|darkest) part of the picture, the {_RGN}, look like over the clip", _extreme_region),
    (rf"What does the {_RGN} of the picture look like over the clip", lambda d, region: True),
]


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", text)


def judge(drawn: Drawn, sentence: str) -> bool:
    """Whether a sentence of the describer is true of what was drawn. Fails for a sentence of unknown form."""
    for pattern, is_true in _SENTENCES + _QUESTIONS:
        match = re.fullmatch(pattern, sentence.rstrip(".?"))
        if match:
            return bool(is_true(drawn, *match.groups()))
    raise AssertionError(f"the oracle does not know this sentence: {sentence!r}")
