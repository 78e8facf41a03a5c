"""The rules that make an instruction-answer pair invalid: one table of named functions on English text.

A rule looks at the instruction, the answer and the little it may know beside them (`Context`); it says whether the
pair breaks it. Phrases are looked for outside double quotes, since a quotation is what can be read in the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """What a rule may know beside the pair itself."""

    caption: str
    kept: Sequence[tuple[str, str]]
    """Instruction and answer of the clip's pairs before this one that were kept."""
    min_answer_words: int


Breaks = Callable[[str, str, Context], bool]
"""(instruction, answer, context): whether the pair breaks the rule."""


@dataclass(frozen=True)
class Rule:
    """A reason to reject a pair. The id is stored with every pair it rejects."""

    id: str
    meaning: str
    source: str
    breaks: Breaks


# --- looking at text

_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d')
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def word_count(text: str) -> int:
    """Words of a text: runs of letters and digits; an apostrophe or hyphen inside a word does not part it."""
    return len(_WORD.findall(text))


def _plain(text: str) -> str:
    """The text for phrase matching: small letters, straight apostrophes, single spaces, quotations emptied.

    A text that is one quotation from end to end is kept: some models quote their whole answer.
    """
    rest = _QUOTED.sub('""', text)
    chosen = rest if word_count(rest) else text
    return " ".join(chosen.replace("\u2019", "'").lower().split())


def _word_key(text: str) -> str:
    """What is left of a text when case, spaces and punctuation do not count."""
    return " ".join(_WORD.findall(text.casefold()))


def _in_either(pattern: re.Pattern[str]) -> Breaks:
    """A rule that finds a pattern in the instruction or in the answer."""

    def breaks(instruction: str, answer: str, context: Context) -> bool:
        return any(pattern.search(_plain(text)) for text in (instruction, answer))

    return breaks


# --- answers that say they cannot answer

# An adverb between "not" and the verb changes nothing ("does not explicitly provide"); "not only" does.
_NOT = (
    r"(?:\bnot|n't|\bcannot|\bnever|\bunable to|\bfail(?:s|ed)? to)\s+(?:(?!only\b)\w+ly\s+)?"
    r"(?:(?:been|be|being|further)\s+)?(?:(?!only\b)\w+ly\s+)?"
)
_NOTHING = (
    r"\bno\s+(?:\w+\s+){0,3}(?:information|details?|descriptions?|indications?|clues?|explanation|context)\b"
    r"(?:\s+\w+){0,8}\s+(?:is|are|was|were|been)\s+(?:\w+ly\s+)?"
)
_NOT_PROVIDE = re.compile(rf"(?:{_NOT}|{_NOTHING})provid(?:e|es|ed|ing)\b")
_NOT_DESCRIBE = re.compile(rf"(?:{_NOT}|{_NOTHING})describ(?:e|es|ed|ing)\b")
_NOT_STATED = re.compile(
    rf"(?:{_NOT}|{_NOTHING})(?:mention(?:s|ed|ing)?|specif(?:y|ies|ied|ying)|stated|disclosed|given)\b"
    r"|\b(?:not enough|insufficient|without (?:more|further|additional)) (?:\w+ )?(?:information|details?|context)\b"
    r"|\bno (?:(?:further|more|other|additional|specific|visual) )*information\b"
    r"|\bno (?:further|more|other|additional|specific) details?\b"
    r"|\bthere (?:is|was) no (?:mention|indication|description)\b"
)
_CANNOT = r"(?:cannot|can't|can not|could not|couldn't)"
_REFUSAL = re.compile(
    r"^\W*(?:very |so )?sorry\b|\b(?:i'm|i am|we're|we are) (?:very |so |really )?sorry\b"
    r"|\bi (?:do |must )?apologi[sz]e\b|\bmy apologies\b"
    r"|\bas an? (?:ai|artificial intelligence|large language model|language model|text-based)\b"
    r"|\b(?:i'm|i am) (?:just |only )?an? (?:ai|language model)\b"
    rf"|\b(?:i|we) (?:{_CANNOT}|do not|don't|am not able to|are not able to|am unable to|are unable to|won't|will not) "
    r"(?:\w+ly )?(?:see|view|watch|access|determine|tell|identify|describe|provide|answer|assist|help|know|have|"
    r"make out|comply|confirm)\b"
    rf"|\b(?:{_CANNOT}|unable to|not possible to|impossible to) (?:\w+ly )?determine\b"
    rf"|\b{_CANNOT} be (?:\w+ly )?(?:determined|identified|answered|inferred|ascertained)\b"
    rf"|^\W*(?:{_CANNOT}|unable to|not able to|impossible to) (?:identify|answer|describe|view|tell)\b"
    r"|\b(?:it's|it is|it was) (?:impossible|not possible|difficult|hard) (?:for me )?to (?:tell|say|know|identify)\b"
    r"|\b(?:it's|it is|it was) (?:unclear|not clear) (?:from|what|which|who|whether|how|if|where)\b"
)

# --- instructions without a target

_MEDIUM = r"(?:video|clip|footage|film|movie|scene|recording|sequence)"
_NO_TARGET = re.compile(
    rf"\bwhat(?:'s| is| was)? (?:this|the|that) (?:\w+ )?{_MEDIUM} (?:is )?(?:\w+ly )?(?:about|trying to)\b"
    r"|\b(?:what|which) (?:\w+ ){0,3}(?:can|could|do|does|did|may|might) "
    r"(?:be|we|you|i|one|someone|viewers|the viewers?|the audience) "
    r"(?:learn(?:ed|t)?|conclude(?:d)?|infer(?:red)?|understand|understood|take away)\b"
    r"|\b(?:what|which)\b.{0,60}?(?:\bnot|n't|\bnever) (?:\w+ly )?(?:shown?|shows|appear(?:s|ed|ing)?|seen|present|"
    r"visible|included?|includes|featured?|depicted|displayed|exist|occur|happen)\b"
    r"|\b(?:what|which)\b.{0,60}?\b(?:missing|absent) (?:from|in)\b"
)
_GRAMMAR = """
    a an the this that these those it its is are was were be been being do does did doing done has have had having can
    could will would shall should may might must of in on at to from for with by about as into over during through
    throughout within across and or but not no if than so such what's who whom whose which what when where why how
    whether there here you your me my i we us our they them their one someone anyone viewer viewers any some all each
    every more most main mainly mostly overall general generally primarily primary basically briefly brief short key
    central important significant notable interesting whole entire full detail details detailed please also other else
"""
_REQUESTS = """
    describe described describing description explain explanation summarize summarise summary tell say give provide
    write list name mention identify discuss elaborate outline talk show shown shows showing see seen look looks like
    watch watching appear appears appearing present presented visible depict depicted depicts featured displayed
    illustrate convey conveyed conveys contain contains include includes included notice observe observed find
"""
_ANY_VIDEO = """
    video videos clip clips footage film movie recording scene scenes picture image frame frames shot sequence content
    contents context topic topics theme themes subject subjects idea ideas message messages point points purpose goal
    aim meaning story plot title genre type kind sort style mood atmosphere tone feeling setting event events action
    actions activity activities element elements object objects thing things item items aspect aspects part parts
    feature features information lesson lessons moral takeaway takeaways conclusion focus happen happens happened
    happening occur occurs occurred occurring going take takes taking place unfold unfolds learn learned learnt teach
    teaches know understand understood conclude infer begin begins beginning start starts end ends ending change
    changes progress time
"""
_GENERIC = frozenset(f"{_GRAMMAR} {_REQUESTS} {_ANY_VIDEO}".split())
"""Words that point at nothing: an instruction made of these alone could be asked of any video."""


def _no_target(instruction: str, answer: str, context: Context) -> bool:
    text = _plain(instruction)
    return bool(_NO_TARGET.search(text)) or set(_WORD.findall(text)) <= _GENERIC


# --- answers and questions of the wrong kind

_YES_NO_ANSWER = re.compile(
    r"^\W*(?:yes|yeah|yep|nope)\b|^\W*no(?:\W*$|[,;:!]|\.(?! ?\d)| (?:there|it|he|she|they|the|this|that)\b)"
)
_YES_NO_QUESTION = re.compile(
    r"^\W*(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|might)(?:n't)? "
    r"(?!you (?:please |kindly |briefly )?(?:describe|explain|tell|give|provide|elaborate|show|point))[^?]*\?\W*$"
)


def _empty(instruction: str, answer: str, context: Context) -> bool:
    return word_count(instruction) == 0 or word_count(answer) == 0


def _too_short(instruction: str, answer: str, context: Context) -> bool:
    return 0 < word_count(answer) < context.min_answer_words


def _yes_no(instruction: str, answer: str, context: Context) -> bool:
    return bool(_YES_NO_ANSWER.search(_plain(answer)) or _YES_NO_QUESTION.search(_plain(instruction)))


def _repeated(instruction: str, answer: str, context: Context) -> bool:
    asked, told = _word_key(instruction), _word_key(answer)
    return any(asked == _word_key(i) or told == _word_key(a) for i, a in context.kept)


def _copies_caption(instruction: str, answer: str, context: Context) -> bool:
    is_detailed = len(re.findall(r"[.!?](?:\s|$)", context.caption)) > 1  # a lone sentence may well be about one thing
    return is_detailed and _word_key(context.caption) in _word_key(answer)


# --- text made from text: whoever trains on a pair sees the video alone

_TEXT = (
    r"(?:(?:video|clip|image|scene|detailed|provided|given|above|previous|original) )*"
    r"(?:caption|description|transcript)"
)
# "In the caption" may well be a caption in the picture; "in the video caption" and "in the description" are not.
_IN_TEXT = r"(?:(?:video|clip|image|scene|provided|given|above|previous) caption|(?:\w+ )?(?:description|transcript))"
_BETRAYS = re.compile(
    rf"\b(?:the|this|that|your) {_TEXT}s? (?:\w+ly )?(?:(?:does|do|did)(?: not|n't) )?(?:say|state|mention|note|"
    r"describe|indicate|provide|suggest|specifie|specify|explain|tell|highlight|include|detail|give)s?\b"
    rf"|\b(?:according to|based on|as per|per|from|consistent with) (?:the|this|that|your|my) {_TEXT}\b"
    rf"|\bin (?:the|this|that|your|my) {_IN_TEXT}\b"
    rf"|\b(?:described|mentioned|stated|noted|provided|given|specified) (?:in|by) (?:the|this|that|your) {_TEXT}\b"
    r"|\bas (?:previously |earlier )?(?:described|mentioned|stated|noted) (?:above|earlier|before|previously)\b"
    r"|\b(?:the|any) (?:provided|given|available) (?:text|information|context|details)\b"
)

# --- damaged text

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
# UTF-8 read as Windows-1252: an accented letter, a curly quote, a picture sign, a byte-order mark.
_MOJIBAKE = re.compile(
    "\u00c3[\u00a0-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u0153\u02dc\u201c\u201d\u2122]"
    "|\u00f0\u0178|\u00ef\u00bb\u00bf|\u00ef\u00bf\u00bd"
)
_MODEL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|\[/?INST\]|<(?:unk|pad|eos|bos)>")
_COMPLETE = re.compile(r"[.!?][\"'\u201d\u2019\u00bb)\]*_]*\s*$")
_TRAILS_OFF = re.compile(r"(?:\.\.|\u2026)[\"'\u201d\u2019)\]]*\s*$")


def _broken_text(instruction: str, answer: str, context: Context) -> bool:
    return any(damage.search(text) for damage in (_CONTROL, _MOJIBAKE, _MODEL_TOKEN) for text in (instruction, answer))


def _truncated(instruction: str, answer: str, context: Context) -> bool:
    return word_count(answer) > 0 and (not _COMPLETE.search(answer) or bool(_TRAILS_OFF.search(answer)))


_RULE_2 = "rule 2: paper, sec. 3.2"
_INVALID = 'invalid information: paper, sec. 3.2 ("such as")'

RULES: tuple[Rule, ...] = (
    Rule("empty", "the instruction or the answer has no word", _RULE_2, _empty),
    Rule("too_short", "the answer has too few words to describe anything", _RULE_2, _too_short),
    Rule("not_provide", '"not provide" and its inflections', "paper, sec. 3.2", _in_either(_NOT_PROVIDE)),
    Rule("not_describe", '"not describe" and its inflections', "paper, sec. 3.2", _in_either(_NOT_DESCRIBE)),
    Rule("not_stated", "other ways to say that something is not said", _INVALID, _in_either(_NOT_STATED)),
    Rule("refusal", "the model declines or speaks of itself", _INVALID, _in_either(_REFUSAL)),
    Rule("no_target", "the instruction points at nothing in particular", "rule 1 and App. C.1", _no_target),
    Rule("yes_no", "a yes-or-no question, or such an answer", _RULE_2, _yes_no),
    Rule("repeated", "instruction or answer of a kept pair of this clip once more", "our choice", _repeated),
    Rule("copies_caption", "the answer holds the whole caption: it is not about one thing", _RULE_2, _copies_caption),
    Rule("betrays_caption", "speaks of the caption it was made from", "our choice", _in_either(_BETRAYS)),
    Rule("broken_text", "control or replacement characters, mojibake, model tokens", "our choice", _broken_text),
    Rule("truncated", "the answer stops before the end of a sentence", "our choice", _truncated),
)
"""All rules, in the order in which their ids are stored."""

RULE_IDS: tuple[str, ...] = tuple(rule.id for rule in RULES)
