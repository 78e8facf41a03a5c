"""What the built-in describer says: sentences of a fixed form, each one true of what was measured.

The caption goes from the whole to the parts, and from what stays to what changes. A pair asks about one thing that can
be pointed at, the most striking first: an area of one colour, the light, the slide of a pan, then parts of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from pipeline.models.builtin.observer_blobs import Blob
from pipeline.models.builtin.observer_measure import REGIONS, Area, Colours, Observation
from pipeline.models.builtin.observer_pan import Pan
from pipeline.models.protocols import Pair

Scale = tuple[tuple[float, str], ...]
"""Words for a number below each bound, in rising order."""

_BRIGHTNESS: Scale = (
    (30, "very dark"),
    (80, "dark"),
    (150, "of medium brightness"),
    (210, "bright"),
    (256, "very bright"),
)
"""Mean luma, of 255."""
_STRUCTURE: Scale = ((0.05, "smooth"), (0.25, "partly structured"), (2, "full of structure"))
"""Share of pixels at an edge."""
_CHANGED: Scale = ((0.005, "hardly any part"), (0.15, "a small part"), (0.6, "a good part"), (2, "nearly all"))
"""Share of pixels that are not the same over the whole clip."""
_ALL, _MOST, _SOME = 0.9, 0.55, 0.15
"""Shares of an area that are "almost entirely", "mostly" and "some" of a colour."""
_MOVES, _STAYS = 0.12, 0.04
"""Shares of the picture: a way that counts as moving, and one that counts as staying."""
_LIGHT_CHANGES, _LIGHT_STAYS = 25.0, 8.0
"""Changes of mean luma, of 255, that count as a change of the light, and as none."""
_STRONGEST, _LEAST_CHANGE = 1.3, 0.01
"""The part that changes most: so many times more of it than of the next one, and at least this share of its pixels."""


def caption(seen: Observation) -> str:
    """Several sentences about the clip."""
    whole = seen.picture
    sentences = [f"The picture is {_colour(whole.colours)}.", _look("It", whole), *_parts(seen)]
    for blob in seen.blobs:
        sentences += _blob(blob)
    if seen.pan is not None:
        sentences += _slide(seen.pan)
    if seen.frames > 1:
        sentences += [*_colour_change("The picture", whole), *_light(seen), *_change(seen)]
    for start_s, end_s in seen.abrupt:
        when = f"Between {start_s:.1f} and {end_s:.1f} seconds"
        sentences.append(f"{when} nearly all of the picture changes, far more than at other times.")
    return " ".join(sentences)


def pairs(seen: Observation, count: int) -> list[Pair]:
    """`count` instruction-answer pairs, at most 9, about different things in the clip."""
    chosen = list(islice(_pairs(seen), count))
    assert len(chosen) == count, (len(chosen), count)
    return chosen


def _pairs(seen: Observation) -> Iterator[Pair]:
    for blob in seen.blobs[:2]:
        yield _blob_pair(blob)
    light = _light(seen)
    if len(light) > 1:
        yield Pair("How does the light in the whole picture change over the clip?", " ".join(light))
    if seen.pan is not None:
        scenery = f"the scenery, which is {_colour(seen.picture.colours)},"
        yield Pair(f"How does {scenery} slide through the picture?", " ".join(_slide(seen.pan)))
    asked = set()
    for part, region in _parts_to_ask_about(seen):
        if region not in asked:
            asked.add(region)
            yield Pair(f"What does the {part} look like over the clip?", _region_answer(region, seen))


def _parts_to_ask_about(seen: Observation) -> Iterator[tuple[str, str]]:
    """What to call a region and its name, the most remarkable first; every region comes up."""
    regions = seen.regions
    strongest = _strongest({name: area.activity for name, area in regions.items()})
    if strongest is not None and seen.pan is None:
        yield f"{strongest} of the picture, where the change is strongest,", strongest
    brightest = max(REGIONS, key=lambda name: regions[name].luma)
    darkest = min(REGIONS, key=lambda name: regions[name].luma)
    if regions[brightest].luma - regions[darkest].luma > _LIGHT_CHANGES:
        yield f"brightest part of the picture, the {brightest},", brightest
        yield f"darkest part of the picture, the {darkest},", darkest
    for name in sorted(REGIONS, key=lambda name: -regions[name].distinctness):
        yield f"{name} of the picture", name


# --- areas of one colour


def _blob_pair(blob: Blob) -> Pair:
    where = f"in the {_region(blob.xs[0], blob.ys[0])} of the picture"
    answer = " ".join([*_blob(blob), f"The {blob.colour} area is {_word(_BRIGHTNESS, blob.luma)}{_rank(blob)}."])
    if _direction(blob) is not None:
        return Pair(f"How does the {blob.colour} area that starts {where} move?", answer)
    return Pair(f"Describe the {blob.colour} area {where} over the clip.", answer)


def _blob(blob: Blob) -> list[str]:
    """Where the area is, how large, and how it moves, as far as that is certain."""
    start, percent = _region(blob.xs[0], blob.ys[0]), max(1, round(100 * blob.share))
    spread = max(max(blob.xs) - min(blob.xs), max(blob.ys) - min(blob.ys))
    direction = _direction(blob)
    verb = "lies" if spread <= _STAYS else "starts"
    article = "An" if blob.colour[0] in "aeiou" else "A"
    where = f"{verb} in the {start} of the picture and covers about {percent} percent of it"
    sentences = [f"{article} {blob.colour} area {where}."]
    back = max(abs(blob.xs[-1] - blob.xs[0]), abs(blob.ys[-1] - blob.ys[0])) < spread / 4
    if direction is not None:
        end = _region(blob.xs[-1], blob.ys[-1])
        sentences.append(f"The {blob.colour} area moves {direction} and ends in the {end}.")
    elif len(blob.xs) > 1 and spread <= _STAYS:
        sentences.append(f"The {blob.colour} area stays in its place.")
    elif spread >= _MOVES and back:
        sentences.append(f"The {blob.colour} area moves away from its place and comes back to it.")
    elif len(blob.xs) > 1:
        sentences.append(f"The {blob.colour} area shifts about and ends in the {_region(blob.xs[-1], blob.ys[-1])}.")
    return sentences


def _rank(blob: Blob) -> str:
    if blob.is_brightest:
        return ", and nothing else in the picture is as bright"
    return ", and nothing else in the picture is as dark" if blob.is_darkest else ""


def _direction(blob: Blob) -> str | None:
    """up, to the right, down and to the left, ...; None when it has no clear direction."""
    return _direction_words(_travel(blob.xs), _travel(blob.ys))


def _travel(places: Sequence[float]) -> float:
    """The way from first to last; 0 unless nearly all of it goes one way."""
    total = places[-1] - places[0]
    travelled = sum(abs(after - before) for before, after in pairwise(places))
    return total if abs(total) >= 0.8 * travelled else 0.0


def _direction_words(across: float, down: float) -> str | None:
    longer = max(abs(across), abs(down))
    if longer < _MOVES:
        return None
    words = []
    if abs(down) >= longer / 2:
        words.append("down" if down > 0 else "up")
    if abs(across) >= longer / 2:
        words.append("to the right" if across > 0 else "to the left")
    return " and ".join(words)


def _region(x: float, y: float) -> str:
    return REGIONS[3 * min(2, int(3 * y)) + min(2, int(3 * x))]


# --- parts of the picture


def _parts(seen: Observation) -> list[str]:
    """A sentence for every group of regions of the same colours; none when all are alike."""
    groups: dict[str, list[str]] = {}
    for name, area in seen.regions.items():
        groups.setdefault(_colour(area.colours), []).append(name)
    if len(groups) == 1:
        return []
    return [f"The {_list(names)} {'is' if len(names) == 1 else 'are'} {look}." for look, names in groups.items()]


def _region_answer(name: str, seen: Observation) -> str:
    area, there = seen.regions[name], f"The {name}"
    sentences = [f"{there} of the picture is {_colour(area.colours)}.", _look(there, area)]
    if seen.frames > 1:
        changing = f"Over the clip, {_word(_CHANGED, area.changed)} of the {name} changes."
        sentences += [*_colour_change(there, area), changing]
    return " ".join(sentences)


def _colour(colours: Colours) -> str:
    name, share = colours.shares[0]
    if share >= _ALL:
        return f"almost entirely {name}"
    others = [other for other, part in colours.shares[1:3] if part >= _SOME]
    if share >= _MOST:
        return f"mostly {name}, with some {_list(others)}" if others else f"mostly {name}"
    return f"a mix of {_list([name, *others])}" if others else f"of many colours, {name} most of all"


def _colour_change(subject: str, area: Area) -> list[str]:
    (before, share_before), (after, share_after) = area.begin.shares[0], area.end.shares[0]
    if before == after or min(share_before, share_after) < _MOST:
        return []
    return [f"{subject} is mostly {before} at the beginning and mostly {after} at the end."]


def _look(subject: str, area: Area) -> str:
    return f"{subject} is {_word(_BRIGHTNESS, area.luma)} and {_word(_STRUCTURE, area.edges)}."


# --- what changes


def _slide(pan: Pan) -> list[str]:
    """The camera's way is the picture's, turned round."""
    picture, camera = _direction_words(pan.dx, pan.dy), _direction_words(-pan.dx, -pan.dy)
    far = f"about {round(100 * max(abs(pan.dx), abs(pan.dy)))} percent of the picture's"
    side = "width" if abs(pan.dx) >= abs(pan.dy) else "height"
    return [
        f"The whole scenery slides {picture}, as when a camera turns {camera}.",
        f"Over the clip it slides by {far} {side}.",
    ]


def _light(seen: Observation) -> list[str]:
    """One sentence when the light stays, two when it changes, none when neither is certain."""
    first, middle, last = seen.luma
    numbers = f"from about {round(first / 2.55)} to about {round(last / 2.55)} percent of full brightness"
    if abs(last - first) >= _LIGHT_CHANGES and seen.luma_is_steady:
        goes = "brighter" if last > first else "darker"
        from_to = f"from {_word(_BRIGHTNESS, first)} to {_word(_BRIGHTNESS, last)}"
        same = _word(_BRIGHTNESS, first) == _word(_BRIGHTNESS, last)
        return [f"The picture grows {goes} over the clip{'' if same else f', {from_to}'}.", f"It goes {numbers}."]
    rise = middle - max(first, last) if middle > first else min(first, last) - middle
    if rise >= _LIGHT_CHANGES:
        there, back = ("brighter", "darker") if middle > first else ("darker", "brighter")
        turn = (
            f"from about {round(first / 2.55)} to about {round(middle / 2.55)} and back to about {round(last / 2.55)}"
        )
        return [
            f"The picture grows {there} toward the middle of the clip and {back} after it.",
            f"It goes {turn} percent of full brightness.",
        ]
    if seen.luma_range <= _LIGHT_STAYS:
        return ["The light stays about the same over the clip."]
    return []


def _change(seen: Observation) -> list[str]:
    regions = seen.regions
    if all(area.changed < _CHANGED[0][0] for area in regions.values()):
        return ["Nothing in the picture changes visibly."]
    if seen.pan is not None:
        return []
    begin = _strongest({name: area.activity_begin for name, area in regions.items()})
    end = _strongest({name: area.activity_end for name, area in regions.items()})
    if begin is not None and end is not None and begin != end:
        return [f"The change is strongest in the {begin} at the beginning and in the {end} at the end."]
    strongest = _strongest({name: area.activity for name, area in regions.items()})
    return [] if strongest is None else [f"The change is strongest in the {strongest}."]


def _strongest(changes: dict[str, float]) -> str | None:
    """The region that clearly changes most, if there is one."""
    first, second = sorted(changes, key=lambda name: -changes[name])[:2]
    clearly = changes[first] >= max(_LEAST_CHANGE, _STRONGEST * changes[second])
    return first if clearly else None


# --- words


def _word(scale: Scale, value: float) -> str:
    return next(word for bound, word in scale if value < bound)


def _list(words: Sequence[str]) -> str:
    """a, b and c"""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
