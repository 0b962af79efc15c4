"""Rollouts of a few prompts of a training step, logged for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Literal

from pydantic import Field

from stages.domain.core.prompts import PromptTexts, sample_prompt
from stages.domain.core.records import Record, Sample, Score, TaskName
from stages.domain.tasks import task_names

#: Most prompts of each task logged per step; all their rollouts are logged, since an advantage
#: compares them.
PROMPTS_PER_TASK = 2


class Rollout(Record):
    """One reply in training.

    Attributes:
        score: its score, with the reason.
        paid: reward by objective, before the objectives' weights; an objective that was not judged
            is left out.
        advantage: above 0, the step makes the reply more likely; below 0, less likely.
        written: true for a written reply, which the policy did not sample (mixed policy).
    """

    score: Score
    paid: dict[str, float]
    advantage: float
    written: Literal[True] | None = None


class RolloutGroup(Record):
    """All rollouts of one prompt that training step ``step`` learned from, in sampling order."""

    schema_version: Literal[1] = 1
    step: int = Field(gt=0)
    sample_id: str
    task: TaskName
    prompt: str
    reference: str
    rollouts: tuple[Rollout, ...] = Field(min_length=1)


def shown_groups(
    step: int, rollouts: Sequence[Rollout], size: int, samples: Mapping[str, Sample], texts: PromptTexts
) -> list[RolloutGroup]:
    """Choose the groups of a step to log, task by task.

    The choice depends on the step and the samples' ids only, never on replies or rewards.

    Args:
        rollouts: all of the step; each ``size`` in a row belong to one prompt.
        samples: by id.
        texts: instructions that the prompts were rendered with.
    """
    groups = {group[0].score.sample_id: group for group in _runs(rollouts, size)}
    drawn = sorted(groups, key=lambda sample_id: Random(f"{step}/{sample_id}").random())
    kept = [i for task in task_names() for i in [i for i in drawn if samples[i].task == task][:PROMPTS_PER_TASK]]
    return [
        RolloutGroup(
            step=step,
            sample_id=sample_id,
            task=samples[sample_id].task,
            prompt=sample_prompt(samples[sample_id], texts),
            reference=samples[sample_id].reference,
            rollouts=tuple(groups[sample_id]),
        )
        for sample_id in kept
    ]


def _runs(rollouts: Sequence[Rollout], size: int) -> Iterator[Sequence[Rollout]]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]
