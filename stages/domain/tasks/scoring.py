"""From the text of a reply to its :class:`Score`: the format gate, then the task's own rule. Rewards and evaluation both come here."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stages.domain.core.records import Sample, Score, TaskName
from stages.domain.core.replies import parse_reply
from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa, structured_caption
from stages.domain.tasks.rewards import Referee, RewardRules, lacks_thinking

_SCORE = {
    dark_event_infer.NAME: dark_event_infer.score,
    mix_vid_qa.NAME: mix_vid_qa.score,
    mcqa.NAME: mcqa.score,
    caption.NAME: caption.score,
    structured_caption.NAME: structured_caption.score,
}


def score_reply(sample: Sample, text: str, referee: Referee, rules: RewardRules) -> Score:
    """Score one reply. ``value`` is the share of the sample's maximum, ``parts['native']`` the task's own number.

    A reply that the format gate refuses scores 0; one that the judge could not score has value None.
    """
    reply = parse_reply(text)
    lacking = reply is not None and lacks_thinking(reply, sample, rules)
    task_score = _SCORE[sample.task](reply, sample, referee, rules) if reply is not None and not lacking else None
    if task_score is None:
        refused = "the thinking is not the JSON asked for"
        if reply is None:
            refused = "no think block followed by an answer block"
        elif lacking:
            refused = f"the thinking has fewer than {rules.min_thinking_words} words that are not the question's"
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


def reward(score: Score, rules: RewardRules, leave_out: Collection[str]) -> float | None:
    """What GRPO is given: the share in [0, 1], or the task's native number; None when the judge could not say.

    ``leave_out``: parts of the score that are not paid; the others keep their weight.
    """
    if score.value is None:
        return None
    native = score.parts["native"]
    paid = native - sum(score.parts.get(part, 0.0) for part in leave_out)
    if rules.scale == "native":
        return paid
    return score.value if paid == native else score.value * paid / native


#: What a task's reward is made of, where the parts are set apart (GDPO); the format stands beside them, for all tasks.
_PARTS: dict[TaskName, tuple[str, ...]] = {
    dark_event_infer.NAME: ("answer",),
    mix_vid_qa.NAME: ("answer",),
    mcqa.NAME: ("answer",),
    caption.NAME: ("recall", "precision", "keywords"),
    structured_caption.NAME: ("thinking", "caption"),
}


def objectives(score: Score) -> dict[str, float]:
    """The parts of a reply's reward, each on a scale of its own; empty where no judge could say.

    A reply that the format gate refuses has 0 in all of them.
    """
    if score.value is None:
        return {}
    names = _PARTS[score.task]
    if not score.format_ok:
        return {"format": 0.0, **dict.fromkeys(names, 0.0)}
    found = {name: score.value if name == "answer" else score.parts[name] for name in names}
    return {"format": 1.0, **found}


def objective_weights(tasks: Iterable[TaskName], rules: RewardRules, leave_out: Collection[str]) -> dict[str, float]:
    """The objectives of these tasks, each with the most that it adds to the sum it is a part of. Its normalised advantage is weighed so.

    ``leave_out``: parts that are none.
    """
    most = {"precision": rules.precision_weight, "keywords": rules.keyword_cap}
    names = dict.fromkeys(["format", *(name for task in tasks for name in _PARTS[task] if name not in leave_out)])
    return {name: weight for name in names if (weight := most.get(name, 1.0)) > 0}
