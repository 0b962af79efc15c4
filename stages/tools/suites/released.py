"""Score replies as VidBridge-R1's released code does (scoring ``compat``), for comparison only:
training does not use it.

Its parsing and its arithmetic (SPEC 1, "known defects"), on this project's judges: text behind the
answer passes the format check; a choice is math-verify's or else the first of the letters A to G,
in that order, anywhere in the answer; a caption without an event has precision 1. Its reading of
its judges' words, and its behaviour when they fail, are not reproduced.
"""

from __future__ import annotations

import re

from stages.domain.core.records import Sample, Score, Verdict
from stages.domain.core.replies import Reply
from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa
from stages.domain.tasks.rewards import (
    Judge,
    Referee,
    RewardRules,
    TaskScore,
    published_bonus,
    right_or_wrong,
    unavailable,
)
from stages.domain.tasks.scoring import score_reply

#: Tasks whose replies that code scores.
_RELEASED = (dark_event_infer.NAME, mix_vid_qa.NAME, mcqa.NAME, caption.NAME)
_FORMAT = re.compile(r"<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>", re.DOTALL)
_LETTERS = "ABCDEFG"


def score_as_released(sample: Sample, text: str, referee: Referee, rules: RewardRules) -> Score:
    """Score one reply as the released code does; ``value`` is the share of the largest reward.

    That code has no other tasks than its own: they are scored as published (``paper``). Call it on
    a main thread, as :func:`same_mathematics`.
    """
    if sample.task not in _RELEASED:
        return score_reply(sample, text, referee, rules.model_copy(update={"scoring": "paper"}))
    match = _FORMAT.match(text)
    scored = _score(sample, Reply(match["thinking"], match["answer"].strip()), referee, rules) if match else None
    value = None if scored is None or scored.value is None else scored.value / scored.maximum
    return Score(
        sample_id=sample.sample_id,
        task=sample.task,
        reply=text,
        format_ok=match is not None,
        value=0.0 if match is None else value,
        parts={"native": 0.0 if scored is None else scored.value} if scored is None or scored.value is not None else {},
        reason="no think block followed by an answer block" if scored is None else scored.reason,
    )


def released_answer(text: str) -> str | None:
    """The answer as the released code reads it, whatever follows it; None if its format check
    refuses the reply."""
    match = _FORMAT.match(text)
    return match["answer"].strip() if match else None


def released_letter(answer: str) -> str | None:
    """The first of A to G, in the order of the alphabet, that occurs anywhere in the answer."""
    return next((letter for letter in _LETTERS if letter in answer), None)


def same_mathematics(answer: str, reference: str) -> bool:
    """Return whether math-verify, which the released multiple-choice reward calls first, treats the
    two as the same expression.

    False if it finds none in one of them ("B" is none). Call it on a main thread: its time limits,
    without which a tower of powers would never end, are alarms.
    """
    from math_verify import parse, verify  # a second of import that training need not pay

    expressions = parse(reference), parse(answer)
    return all(expressions) and bool(verify(*expressions))


def _score(sample: Sample, reply: Reply, referee: Referee, rules: RewardRules) -> TaskScore:
    if sample.task == mcqa.NAME:
        right = same_mathematics(reply.answer, sample.reference) or released_letter(reply.answer) == sample.reference
        return TaskScore(value=float(right), maximum=1.0, reason="right" if right else "wrong")
    if sample.task == caption.NAME:
        return _caption(sample, reply.answer, referee.judge, rules)
    score = dark_event_infer.score if sample.task == dark_event_infer.NAME else right_or_wrong
    return score(reply, sample, referee, rules)


def _caption(sample: Sample, text: str, judge: Judge, rules: RewardRules) -> TaskScore:
    maximum = 1 + rules.precision_weight + rules.keyword_cap
    recall = caption.event_recall(sample, text, judge)
    if isinstance(recall, Verdict):
        return unavailable(recall, maximum)
    events = judge.extract_events(text)
    precision: float | Verdict = 1.0
    if events:
        precision = caption.event_precision(sample, text, judge)
    if isinstance(precision, Verdict):
        return unavailable(precision, maximum)
    total = recall + rules.precision_weight * precision + published_bonus(text, rules)
    return TaskScore(value=total, maximum=maximum, reason=f"recall {recall:.2f} precision {precision:.2f}")
