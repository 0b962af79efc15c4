"""What a GRPO row may pay beside the task: replies of a wanted length, and replies that need the frames in their order.

Both come from Video-R1 (Feng et al., arXiv 2503.21776): its length reward, and the temporal contrast of T-GRPO. Only replies that are
right already are paid, so neither is a way around the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from stages.domain.core.records import Record, Score
from stages.domain.core.replies import parse_reply
from stages.domain.core.words import words
from stages.domain.rl.groups import exceeds

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class LengthReward(Record):
    """``weight`` for a reply of ``min_words`` to ``max_words`` words, thinking and answer, that earns ``min_share`` of its task or more."""

    weight: Positive
    min_words: int = Field(ge=0)
    max_words: int = Field(gt=0)
    min_share: Share

    @model_validator(mode="after")
    def _leaves_room(self) -> LengthReward:
        if self.min_words > self.max_words:
            raise ValueError(f"length: min_words {self.min_words} exceeds max_words {self.max_words}: no reply has such a length")
        return self


class TemporalContrast(Record):
    """``weight`` for the right replies (``min_share`` of the task or more) of a prompt whose replies do better than ``ratio`` times what
    ``rollouts`` replies to the same frames in another order do. Video-R1 takes weight 0.3 and ratio 0.8; above 1 asks for more."""

    weight: Positive
    ratio: Positive
    rollouts: int = Field(ge=1)
    min_share: Share


def length_paid(score: Score, rule: LengthReward) -> float | None:
    """1 where the rule pays, 0 where it does not, before the weight; None where no judge could say whether the reply is right."""
    if score.value is None:
        return None
    reply = parse_reply(score.reply)
    if reply is None or exceeds(rule.min_share, score.value):
        return 0.0
    return float(rule.min_words <= len(words(reply.thinking)) + len(words(reply.answer)) <= rule.max_words)


def contrast_paid(ordered: Sequence[float | None], shuffled: Sequence[float | None], rule: TemporalContrast) -> list[float | None]:
    """1 or 0, before the weight, for each reply of one prompt.

    Args:
        ordered: what share of the task each reply to the video earns; None: no judge could say, and so it stays.
        shuffled: the same of replies to the shuffled video. Where none of them could be judged, nothing is known and nobody is paid
            or held back: all are None.
    """
    known, other = ([share for share in shares if share is not None] for shares in (ordered, shuffled))
    if not known or not other:
        return [None] * len(ordered)
    # Eight replies that earn .7 each earn .7000000000000001 on average, which is not more than two that do.
    needs_order = exceeds(sum(known) / len(known), rule.ratio * sum(other) / len(other))
    return [None if share is None else float(needs_order and not exceeds(rule.min_share, share)) for share in ordered]
