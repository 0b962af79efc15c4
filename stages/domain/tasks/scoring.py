"""Scoring of replies: the format gate, then the task's own rule. Rewards and evaluation share
it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stages.domain.core.records import Sample, Score, TaskName
from stages.domain.core.replies import Reply, parse_reply
from stages.domain.tasks import task_of
from stages.domain.tasks.rewards import Referee, RewardRules, lacks_thinking
from stages.domain.tasks.task import AnswerForm


def score_reply(sample: Sample, text: str, referee: Referee, rules: RewardRules) -> Score:
    """Score one reply. ``value`` is the share of the sample's maximum, ``parts['native']`` the
    task's own number.

    A reply that fails the format gate scores 0; a reply that the judge could not score has value
    None.
    """
    reply, task = parse_reply(text), task_of(sample.task)
    refused = _refused(reply, sample, task.form, rules)
    task_score = task.score(reply, sample, referee, rules) if reply is not None and refused is None else None
    if task_score is None:
        return Score(
            sample_id=sample.sample_id,
            task=sample.task,
            reply=text,
            format_ok=False,
            value=0.0,
            parts={"native": 0.0},
            reason=refused or ("the thinking is not the JSON asked for" if task.analysed else "not of the task's form"),
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


def _refused(reply: Reply | None, sample: Sample, form: AnswerForm | None, rules: RewardRules) -> str | None:
    """The reason why a reply fails the format gate; None if it passes."""
    if reply is None:
        return "no think block followed by an answer block"
    if lacks_thinking(reply, sample, rules):
        return f"the thinking has fewer than {rules.min_thinking_words} words that are not the question's"
    if form is not None and form.parse(reply.answer) is None:
        return f"the answer is not {form.about}"
    return None


def reward(score: Score, rules: RewardRules, leave_out: Collection[str]) -> float | None:
    """Compute the reward for GRPO: the share in [0, 1], or the task's native score; None if the
    reply was not judged.

    ``leave_out``: parts of the score that are not paid; the others keep their weight.
    """
    if score.value is None:
        return None
    native = score.parts["native"]
    paid = native - sum(score.parts.get(part, 0.0) for part in leave_out)
    if rules.scale == "native":
        return paid
    return score.value if paid == native else score.value * paid / native


def objectives(score: Score) -> dict[str, float]:
    """Split a reply's reward into its parts, each on its own scale (GDPO), and the format; empty if
    the reply was not judged.

    A reply that fails the format gate has 0 in all of them.
    """
    if score.value is None:
        return {}
    names = [part.name for part in task_of(score.task).parts]
    if not score.format_ok:
        return {"format": 0.0, **dict.fromkeys(names, 0.0)}
    parts = {name: score.value if name == "answer" else score.parts[name] for name in names}
    return {"format": 1.0, **parts}


def objective_weights(tasks: Iterable[TaskName], rules: RewardRules, leave_out: Collection[str]) -> dict[str, float]:
    """Weight of each objective of these tasks: the maximum that it adds to its score. It weighs the
    objective's normalised advantage.

    ``leave_out``: parts that are not objectives.
    """
    parts = {
        part.name: part.most(rules) for task in tasks for part in task_of(task).parts if part.name not in leave_out
    }
    return {name: weight for name, weight in {"format": 1.0, **parts}.items() if weight > 0}
