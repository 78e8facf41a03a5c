"""clean: a clip's pairs, each kept or rejected by the ids of the rules it breaks."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from pipeline.records import Grain
from pipeline.stage import MapStage, Output, Rejected, Row, Workspace
from pipeline.stages.clean_rules import RULE_IDS, RULES, Context


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CleanConfig:
    """How strict cleaning is."""

    min_answer_words: Annotated[int, Field(ge=1)] = 8
    """An answer with fewer words describes nothing in detail (rule 2 of the paper; the number is our choice)."""
    disabled_rules: tuple[str, ...] = ()
    """Ids of rules that are not applied; all apply by default."""

    @field_validator("disabled_rules")
    @classmethod
    def _known(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(rules) - set(RULE_IDS))
        if unknown:
            raise ValueError(f"unknown rules {', '.join(unknown)}; known: {', '.join(RULE_IDS)}")
        return rules


class Clean(MapStage):
    """Keep a clip's valid pairs; store the others with the rules they break."""

    name = "clean"
    grain_in = Grain.CLIP
    grain_out = Grain.CLIP
    reads = ("generate.caption", "generate.raw_pairs")

    def __init__(self, config: CleanConfig) -> None:
        self.config = config
        self._rules = [rule for rule in RULES if rule.id not in config.disabled_rules]

    def apply(self, row: Row, work: Workspace) -> Output:
        """Raises Rejected("all_pairs_invalid") naming each pair's rules when no pair is left."""
        pairs: list[Row] = []
        rejected_pairs: list[Row] = []
        for pair in row["raw_pairs"]:
            rules = self._broken(pair, pairs, row["caption"])
            if rules:
                rejected_pairs.append({**pair, "rules": rules})
            else:
                pairs.append(pair)
        if not pairs:
            why = "; ".join(f"pair {pair['index']}: {', '.join(pair['rules'])}" for pair in rejected_pairs)
            raise Rejected("all_pairs_invalid", why or "the describer wrote no pair")
        return Output(rows=[{"pairs": pairs, "rejected_pairs": rejected_pairs}])

    def _broken(self, pair: Row, kept: list[Row], caption: str) -> list[str]:
        """Ids of the rules that the pair breaks, in table order."""
        context = Context(
            caption=caption,
            kept=[(earlier["instruction"], earlier["answer"]) for earlier in kept],
            min_answer_words=self.config.min_answer_words,
        )
        return [rule.id for rule in self._rules if rule.breaks(pair["instruction"], pair["answer"], context)]
