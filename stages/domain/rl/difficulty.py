"""Selection of samples worth training on, by rollouts of the policy that training starts from.

A group whose rollouts all score the same has advantage 0 everywhere, so its sample teaches nothing.
VidBridge-R1 drops samples that are always right, and captions (whose scores are graded) that hardly
vary. Samples that are always wrong stay: training may change that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import pstdev
from typing import Annotated, Literal

from pydantic import Field

from stages.domain.core.records import Record, Sample, TaskName
from stages.domain.rl.groups import exceeds, paid_alike
from stages.domain.tasks import task_of

Verdict = Literal["kept", "not-judged", "always-right", "never-moves"]
#: Verdicts under which a sample stays; a missing judgement never drops one.
KEPT: tuple[Verdict, ...] = ("kept", "not-judged")


class DropRules(Record):
    #: Drop samples of other tasks than captions whose rollouts all score the maximum.
    drop_always_right: bool
    #: Drop captions whose rollouts' scores (shares of the maximum) have a standard deviation below
    #: this; 0 drops none.
    min_spread: Annotated[float, Field(ge=0)]


class Rolled(Record):
    """One sample's rollouts: their scores as shares of the maximum (None: not judged) and what
    follows from them."""

    schema_version: Literal[1] = 1
    sample_id: str
    task: TaskName
    scores: tuple[float | None, ...] = Field(min_length=1)
    verdict: Verdict

    @property
    def kept(self) -> bool:
        return self.verdict in KEPT


def judged(sample: Sample, scores: Sequence[float | None], rules: DropRules) -> Rolled:
    """Decide whether a sample stays, by the scores of its rollouts.

    ``not-judged``: at least one rollout has no score, so no statement about all of them is
    possible, and the sample stays.
    """
    available = [score for score in scores if score is not None]
    verdict: Verdict = "kept"
    if len(available) < len(scores):
        verdict = "not-judged"
    elif task_of(sample.task).answer == "caption":
        # Graded scores must vary; other scores must not always be the maximum.
        # Population deviation: these are all the rollouts, not a sample of them.
        moves = not paid_alike(available) and not exceeds(rules.min_spread, pstdev(available))
        verdict = "kept" if moves or not rules.min_spread else "never-moves"
    elif rules.drop_always_right and all(score >= 1 for score in available):
        verdict = "always-right"
    return Rolled(sample_id=sample.sample_id, task=sample.task, scores=tuple(scores), verdict=verdict)


class TaskCounts(Record):
    """Samples of one task. ``rolled_out`` = ``kept`` + ``always_right`` + ``never_moves``;
    ``not_judged`` are among the kept."""

    rolled_out: int
    kept: int
    always_right: int
    never_moves: int
    not_judged: int


def counts(rolled: Sequence[Rolled]) -> Mapping[TaskName, TaskCounts]:
    """Count verdicts by task, in order of the tasks' first appearance."""
    by_task: dict[TaskName, Counter[str]] = {}
    for row in rolled:
        by_task.setdefault(row.task, Counter())[row.verdict] += 1
    return {
        task: TaskCounts(
            rolled_out=verdicts.total(),
            kept=sum(verdicts[verdict] for verdict in KEPT),
            always_right=verdicts["always-right"],
            never_moves=verdicts["never-moves"],
            not_judged=verdicts["not-judged"],
        )
        for task, verdicts in by_task.items()
    }
