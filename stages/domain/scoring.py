"""From the text of a reply to its :class:`Score`: the format gate, then the task's own rule. Rewards and evaluation both come here."""

from __future__ import annotations

from stages.domain.records import Sample, Score
from stages.domain.replies import parse_reply
from stages.domain.rewards import Judge, RewardRules
from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa, structured_caption

_SCORE = {
    dark_event_infer.NAME: dark_event_infer.score,
    mix_vid_qa.NAME: mix_vid_qa.score,
    mcqa.NAME: mcqa.score,
    caption.NAME: caption.score,
    structured_caption.NAME: structured_caption.score,
}


def score_reply(sample: Sample, text: str, judge: Judge, rules: RewardRules) -> Score:
    """Score one reply. ``value`` is the share of the sample's maximum, ``parts['native']`` the task's own number.

    A reply that the format gate refuses scores 0; one that the judge could not score has value None.
    """
    reply = parse_reply(text)
    task_score = _SCORE[sample.task](reply, sample, judge, rules) if reply is not None else None
    if task_score is None:
        refused = "no think block followed by an answer block" if reply is None else "the thinking is not the JSON asked for"
        return Score(
            sample_id=sample.sample_id,
            task=sample.task,
            reply=text,
            format_ok=False,
            value=0.0,
            parts={"native": 0.0},
            reason=refused,
        )
    value = None if task_score.value is None else task_score.value / task_score.maximum
    native = {} if task_score.value is None else {"native": task_score.value}
    return Score(
        sample_id=sample.sample_id,
        task=sample.task,
        reply=text,
        format_ok=True,
        value=value,
        parts={**task_score.parts, **native},
        reason=task_score.reason,
    )


def reward(score: Score, rules: RewardRules) -> float | None:
    """What GRPO is given: the share in [0, 1], or the task's native number; None when the judge could not say."""
    if score.value is None:
        return None
    return score.value if rules.scale == "unit" else score.parts["native"]
