"""The rules of clean, each with pairs that break it and pairs that only look as if they did."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import ValidationError

from pipeline.stage import Rejected, Workspace
from pipeline.stages.clean import Clean, CleanConfig
from pipeline.stages.clean_rules import RULE_IDS, RULES

ASK = "What does the brown dog beside the sofa do?"
TELL = "The brown dog walks along the sofa. It stops at the left end and lies down on the rug."
CAPTION = "A brown dog walks along a grey sofa. Behind it stands a tall lamp with a white shade."

NO_WORK = cast(Workspace, None)


def rules_of(*pairs: tuple[str, str], caption: str = CAPTION, **config: Any) -> list[list[str]]:
    """Rule ids of each pair of a clip; an empty list for a kept pair."""
    raw = [{"index": n, "instruction": i, "answer": a} for n, (i, a) in enumerate(pairs)]
    raw.append(
        {
            "index": len(raw),
            "instruction": "How does the red kite move?",
            "answer": "It climbs to the top of the picture.",
        }
    )
    output = Clean(CleanConfig(**config)).apply({"raw_pairs": raw, "caption": caption}, NO_WORK)
    fired = {pair["index"]: pair["rules"] for pair in output.rows[0]["rejected_pairs"]}
    return [fired.get(n, []) for n in range(len(pairs))]


# (instruction, answer) pairs by rule: those that break it, and near misses. None stands for a sound text.
BREAKS: dict[str, list[tuple[str | None, str | None]]] = {
    "empty": [("", None), (None, ""), (None, "   \n "), (None, "..."), ("???", None)],
    "too_short": [
        (None, "A dog."),
        (None, "It walks to the left."),
        (None, "Brown and white with a red collar."),
        (None, "Blue."),
        (None, "The dog lies down on the rug."),
    ],
    "not_provide": [
        (None, "The video does not provide the colour of the collar that the dog wears."),
        (None, "The colour of the collar on the brown dog's neck isn't provided here."),
        (None, "Further facts about the brown dog on the rug are not provided."),
        (None, "The footage doesn\u2019t explicitly provide any view of the dog's other side."),
        (None, "No information about the rug below the dog is provided at all."),
        (None, "What the dog does afterwards has not been provided by the camera."),
        (None, "The clip cannot provide more on the dog, NOT PROVIDING any closer view."),
    ],
    "not_describe": [
        (None, "The video does not describe the colour of the collar that the dog wears."),
        (None, "The collar of the brown dog beside the sofa is not described."),
        (None, "The dog's collar isn't specifically described, nor is the rug below it."),
        (None, "The clip never describes what the dog does after it lies down."),
        (None, "The frames fail to describe the look of the rug in any way."),
        (None, "The scene, not describing the lamp, turns to the dog and stays there."),
    ],
    "not_stated": [
        (None, "The breed of the dog is not mentioned, but it has brown fur."),
        (None, "It is not specified which way the dog goes after it stands up."),
        (None, "There is no information on what the dog does in the next room."),
        (None, "There is not enough detailed information to say what the dog does."),
        (None, "There is no mention of a collar, and the dog lies on a rug."),
        (None, "No further details can be made out beside the brown dog on the rug."),
    ],
    "refusal": [
        (None, "I'm sorry, but I can only talk about the sofa and the lamp."),
        (None, "As an AI language model, I look at frames and not at dogs."),
        (None, "I cannot see the dog clearly in any of these frames of video."),
        (None, "It cannot be determined from the frames what the dog does next."),
        (None, "Unable to determine what the brown dog beside the sofa is doing."),
        (None, "I apologize, the frames are too dark to say anything about the dog."),
        (None, '"I am sorry, I am unable to assist with this request today."'),
        (None, "It is unclear what the dog does after it reaches the end of the sofa."),
    ],
    "no_target": [
        ("What is this video mainly about?", None),
        ("What can be learned from this video?", None),
        ("Which element doesn't show up in the video?", None),
        ("Describe the video in detail.", None),
        ("What is happening in this clip?", None),
        ("Which of the following objects is not shown in the kitchen?", None),
        ("What is the main theme of the scene?", None),
        ("Can you summarize what happens in the footage?", None),
        ("What lesson does the video teach?", None),
        ("Which object is missing from the table?", None),
        ("What\u2019s the clip about?", None),
        ("What can viewers learn about dogs?", None),
        ("How does the video end?", None),
    ],
    "yes_no": [
        (None, "Yes, the brown dog walks along the sofa and lies down."),
        (None, "No, the brown dog walks along the sofa to its left end."),
        ("Is the brown dog lying on the rug?", None),
        ("Does the dog beside the sofa wear a collar?", None),
        (None, "No there is a brown dog which lies down on the rug."),
        ("Are there any lamps behind the grey sofa?", None),
        ("Doesn't the dog walk to the left?", None),
    ],
    "copies_caption": [
        (None, CAPTION),
        (None, CAPTION.upper()),
        (None, f"In the room, {CAPTION} The dog lies down."),
        (None, CAPTION.replace(" ", "  ")),
        (None, CAPTION.replace(". ", "; ")),
    ],
    "betrays_caption": [
        (None, "The caption says that a brown dog walks along the sofa."),
        (None, "According to the description, the brown dog lies down on the rug."),
        (None, "As mentioned in the caption, the dog walks along the grey sofa."),
        ("What does the dog in the description do?", None),
        (None, "Based on the provided caption, the dog walks along the sofa."),
        (None, "As described above, the dog walks to the left end of the sofa."),
        (None, "From the given information, the dog walks along the grey sofa."),
        ("What does the video caption say about the dog?", None),
    ],
    "broken_text": [
        (None, "The caf\ufffd sign hangs above the brown dog, which lies down."),
        (None, "The caf\u00c3\u00a9 sign hangs above the brown dog, which lies down."),
        (None, "The dog\u00e2\u20ac\u2122s collar is red and it walks along the sofa."),
        (None, "The dog walks along the sofa\x00 and lies down on the rug."),
        (None, "The dog walks along the sofa and lies down on the rug.<|im_end|>"),
        ("What does the \u00f0\u0178\u0090\u00b6 dog do?", None),
    ],
    "truncated": [
        (None, "The brown dog walks along the sofa and then it lies down on the"),
        (None, "The brown dog walks along the sofa, stops at its left end,"),
        (None, "The brown dog walks along the sofa. It stops at the left end and..."),
        (None, "The brown dog walks along the sofa; it is followed by"),
        (None, 'The brown dog walks past a sign that says "Keep off the'),
        (None, "The brown dog walks along the sofa and lies down\u2026"),
    ],
}

PASSES: dict[str, list[tuple[str | None, str | None]]] = {
    "empty": [
        ("Describe the dog.", None),
        (None, "1 2 3 4 5 6 7 8 9 stand on the shirts."),
        ("The dog?", None),
        ("\u00bfDog?", None),
        (None, "A b c d e f g h i."),
    ],
    "too_short": [
        (None, "The dog lies down on the soft rug."),
        (None, "A well-groomed dog walks over to the left end."),
        (None, "It walks left, stops, turns around, and lies down."),
        (None, "The dog's collar is red with a silver buckle."),
        (None, "Slowly, the brown dog walks along the whole grey sofa."),
    ],
    "not_provide": [
        (None, "The awning provides shade for the dog that lies on the rug."),
        (None, "The lamp not only provides light, it also hangs right above the dog."),
        (None, "The rope with a knot provides a hold for the man's left hand."),
        (None, "A provider's logo stands on the van, and it is not a red one."),
        (None, 'A sign beside the dog reads "Towels not provided" in blue letters.'),
        (None, "There is no railing, and light is provided by two white lamps."),
    ],
    "not_describe": [
        (None, "The skater describes a wide circle on the ice, then stops."),
        ("Describe the man who does not move.", None),
        (None, "The plane's trail describes an arc which does not fade for long."),
        (None, "The kite not only describes loops, it also dives toward the sand."),
        (None, 'The poster says "Words can not describe it" in large red letters.'),
    ],
    "not_stated": [
        (None, "There are no details on the plain white wall behind the dog."),
        (None, "The stately house does not have any windows on its left side."),
        (None, "An information desk stands on the left, with nobody behind it."),
        (None, 'The screen shows "No information" in white letters on blue.'),
        (None, "The man mentions something into a microphone and does not look up."),
    ],
    "refusal": [
        (None, "The boy cannot see over the fence, so he climbs onto a crate."),
        (None, 'The card in her hand reads "I\'m sorry" in curly red letters.'),
        (None, "A sorry-looking dog with wet fur lies on the rug beside the sofa."),
        (None, "Unable to see over the fence, the boy climbs onto a wooden crate."),
        (None, "It is difficult to see the road through the thick white fog."),
        ("Describe the sign that says AI on the wall.", None),
    ],
    "no_target": [
        ("What is the man in the red shirt doing in this video?", None),
        ("Describe the scene behind the woman.", None),
        ("What happens in the lower left of the picture?", None),
        ("What is shown on the screen of the laptop?", None),
        ("How does the white disc move over the clip?", None),
        ("Which dog does not move while the others run?", None),
        ("What does the girl learn to play?", None),
    ],
    "yes_no": [
        (None, "No one sits on the sofa until the brown dog jumps onto it."),
        (None, "No. 7 is printed in white on the back of the player's shirt."),
        ("Can you describe the dog beside the sofa?", None),
        ("Could you please tell what the brown dog does?", None),
        (None, "Yesterday's newspaper lies on the rug, right beside the brown dog."),
        ("Do you see the dog? Describe its collar.", None),
    ],
    "copies_caption": [
        (None, "A brown dog walks along a grey sofa. It stops and lies down."),
        (None, "Behind it stands a tall lamp with a white shade. It is lit."),
        (None, "The tall lamp with a white shade stands behind the brown dog."),
        (None, "A brown cat walks along a grey sofa. Behind it stands a tall lamp."),
        (None, TELL),
    ],
    "betrays_caption": [
        (None, "A yellow caption at the bottom of the picture reads Paris."),
        (None, "The name in the caption changes when the second man speaks."),
        (None, "The captioned picture hangs on the wall, right above the dog."),
        (None, "A description board stands beside the path, in front of two trees."),
        ("What does the yellow caption at the bottom say?", None),
        (None, "The prompter holds a text up; the dog walks according to his hand."),
    ],
    "broken_text": [
        (None, "The caf\u00e9 sign hangs above the brown dog, which lies down."),
        (None, "The dog\u2019s collar is red \u2013 and it walks along the sofa."),
        (None, "The dog walks along the sofa,\nthen\tlies down on the rug."),
        (None, "A sign reads \u201cAMANH\u00c3\u201d in red above the brown dog, which rests."),
        (None, "A sign in Japanese, \u5bff\u53f8, hangs above the dog at 20 \u00b0C."),
        (None, "The boy's shirt says 3 < 4 | 5 > 2 in large white letters."),
    ],
    "truncated": [
        (None, 'The brown dog walks past a sign that reads "Keep off the grass."'),
        (None, "The brown dog walks along the sofa (which is grey)."),
        (None, "What a jump: the dog flies right over the whole sofa!"),
        (None, 'The brown dog walks past a sign that reads "Loading...".'),
        (None, "The brown dog walks along the grey sofa to its left end.  \n"),
    ],
}


def cases(table: dict[str, list[tuple[str | None, str | None]]]) -> list[tuple[str, str, str]]:
    return [(rule, i if i is not None else ASK, a if a is not None else TELL) for rule in table for i, a in table[rule]]


@pytest.mark.parametrize(("rule", "instruction", "answer"), cases(BREAKS))
def test_a_pair_that_breaks_the_rule_is_rejected_by_it(rule: str, instruction: str, answer: str) -> None:
    assert rule in rules_of((instruction, answer))[0]
    assert rule not in rules_of((instruction, answer), disabled_rules=(rule,))[0]


@pytest.mark.parametrize(("rule", "instruction", "answer"), cases(PASSES))
def test_a_near_miss_passes_every_rule(rule: str, instruction: str, answer: str) -> None:
    assert rules_of((instruction, answer)) == [[]]


@pytest.mark.parametrize(
    "again",
    [
        (ASK, TELL),
        (ASK.upper(), TELL.lower()),
        (f"  {ASK.replace(' ', '   ')}", TELL),
        (ASK, "The dog that lies on the rug now has a red collar."),
        ("Describe the dog on the rug.", TELL.replace(". ", " ; ")),
    ],
)
def test_a_repeated_pair_goes_and_the_first_stays(again: tuple[str, str]) -> None:
    assert rules_of((ASK, TELL), again) == [[], ["repeated"]]


@pytest.mark.parametrize(
    "other",
    [
        ("What does the black dog beside the sofa do?", TELL.replace("brown", "black")),
        ("Describe the lamp.", "The lamp behind the sofa is tall and has a white shade."),
        ("What does the brown dog beside the sofa do then?", "The brown dog walks along the sofa and out of view."),
        ("Describe the rug.", "It stops at the left end and lies down on the rug."),
        ("What does the brown dog do beside the sofa?", f"Slowly, {TELL}"),
    ],
)
def test_a_similar_pair_is_not_a_repeat(other: tuple[str, str]) -> None:
    assert rules_of((ASK, TELL), other) == [[], []]


def test_a_pair_whose_first_writing_was_rejected_is_no_repeat() -> None:
    assert rules_of((ASK, "The brown dog walks along the sofa and then to the"), (ASK, TELL)) == [["truncated"], []]


def test_every_rule_has_five_cases_either_way_and_a_unique_id() -> None:
    assert len(set(RULE_IDS)) == len(RULES)
    tested = set(RULE_IDS) - {"repeated"}
    assert set(BREAKS) == set(PASSES) == tested
    assert all(len(table[rule]) >= 5 for table in (BREAKS, PASSES) for rule in tested)


def test_kept_pairs_keep_their_index_and_rejected_ones_carry_all_their_rules() -> None:
    raw = [
        {"index": 0, "instruction": "What is this video about?", "answer": "Sorry"},
        {"index": 1, "instruction": ASK, "answer": TELL},
    ]
    row = Clean(CleanConfig()).apply({"raw_pairs": raw, "caption": CAPTION}, NO_WORK).rows[0]
    assert row["pairs"] == [raw[1]]
    assert row["rejected_pairs"] == [{**raw[0], "rules": ["too_short", "refusal", "no_target", "truncated"]}]


def test_a_clip_without_a_valid_pair_is_rejected_naming_the_rules() -> None:
    raw = [
        {"index": 0, "instruction": ASK, "answer": "The answer is not provided anywhere in this whole video."},
        {"index": 1, "instruction": "What is this video about?", "answer": TELL},
    ]
    row = {"raw_pairs": raw, "caption": CAPTION}
    with pytest.raises(Rejected) as caught:
        Clean(CleanConfig()).apply(row, NO_WORK)
    assert (caught.value.reason, caught.value.detail) == ("all_pairs_invalid", "pair 0: not_provide; pair 1: no_target")
    kept = Clean(CleanConfig(disabled_rules=("not_provide",))).apply(row, NO_WORK).rows[0]
    assert [pair["index"] for pair in kept["pairs"]] == [0]


def test_a_clip_that_came_without_pairs_is_rejected() -> None:
    with pytest.raises(Rejected, match="the describer wrote no pair"):
        Clean(CleanConfig()).apply({"raw_pairs": [], "caption": CAPTION}, NO_WORK)


def test_a_config_with_an_unknown_rule_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"unknown rules sense; known: .*not_provide"):
        CleanConfig(disabled_rules=("not_provide", "sense"))


def test_the_shortest_accepted_answer_is_a_setting() -> None:
    assert rules_of((ASK, "It lies down."), min_answer_words=3) == [[]]
    assert rules_of((ASK, "It lies down."), min_answer_words=4) == [["too_short"]]
    assert Clean(CleanConfig(min_answer_words=3)).own_hash() != Clean(CleanConfig()).own_hash()
