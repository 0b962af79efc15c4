"""Rewards of a GRPO row beside the task's: for a desired reply length, for replies that need the
frames in order, and against replies that come close to the limit of their length.

The first two come from Video-R1 (Feng et al., arXiv 2503.21776): its length reward, and the
temporal contrast of T-GRPO. Only replies that are already right earn them, so neither replaces the
task. The penalty is DAPO's (arXiv 2503.14476); right and wrong replies get it alike.
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
    """Pay ``weight`` for a reply of ``min_words`` to ``max_words`` words (thinking and answer) that
    earns ``min_share`` of its task or more."""

    weight: Positive
    min_words: int = Field(ge=0)
    max_words: int = Field(gt=0)
    min_share: Share

    @model_validator(mode="after")
    def _leaves_room(self) -> LengthReward:
        if self.min_words > self.max_words:
            raise ValueError(
                f"length: min_words {self.min_words} exceeds max_words {self.max_words}: no reply has such a length"
            )
        return self


class TemporalContrast(Record):
    """Pay ``weight`` for the right replies (``min_share`` of the task or more) of a prompt that
    needs the frames in order.

    A prompt needs them if its replies earn more than ``ratio`` times the mean of ``rollouts``
    replies to the shuffled frames. Video-R1 uses weight 0.3 and ratio 0.8; a ratio above 1 is
    stricter.
    """

    weight: Positive
    ratio: Positive
    rollouts: int = Field(ge=1)
    min_share: Share


class OverlongPenalty(Record):
    """Take up to ``weight`` from a reply whose last tokens come within ``margin_tokens`` of
    ``max_completion_tokens`` (soft overlong punishment, DAPO, arXiv 2503.14476, equation 13).

    DAPO uses weight 1 and 4,096 of 20,480 tokens.
    """

    weight: Positive
    #: Tokens before the limit in which the penalty rises from 0 to its whole.
    margin_tokens: int = Field(gt=0)


def length_paid(score: Score, rule: LengthReward) -> float | None:
    """Length reward before the weight, 1 or 0; None if no judge could tell whether the reply is
    right."""
    if score.value is None:
        return None
    reply = parse_reply(score.reply)
    if reply is None or exceeds(rule.min_share, score.value):
        return 0.0
    return float(rule.min_words <= len(words(reply.thinking)) + len(words(reply.answer)) <= rule.max_words)


def contrast_paid(
    ordered: Sequence[float | None], shuffled: Sequence[float | None], rule: TemporalContrast
) -> list[float | None]:
    """Frame-order reward before the weight, 1 or 0, for each reply of one prompt.

    Args:
        ordered: share of the task that each reply to the video earns; None (not judged) stays None.
        shuffled: the same for replies to the shuffled video. If none of them could be judged, the
            result is None for all replies.
    """
    available, other = ([share for share in shares if share is not None] for shares in (ordered, shuffled))
    if not available or not other:
        return [None] * len(ordered)
    # Eight replies that earn .7 each have a mean of .7000000000000001, which is not more than that
    # of two such replies.
    needs_order = exceeds(sum(available) / len(available), rule.ratio * sum(other) / len(other))
    return [None if share is None else float(needs_order and not exceeds(rule.min_share, share)) for share in ordered]


def overlong_paid(tokens: int, most: int, rule: OverlongPenalty) -> float:
    """Overlong penalty of a reply before the weight, from 0 to -1: ((most - margin) - tokens) /
    margin in the margin below ``most``, the largest number of tokens."""
    return min(0.0, max(-1.0, (most - rule.margin_tokens - tokens) / rule.margin_tokens))
