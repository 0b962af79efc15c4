"""Which samples are worth training on, told from rollouts of the policy that training starts from.

A group whose rollouts all score the same has no advantage anywhere, so its sample teaches nothing. VidBridge-R1 drops samples that are
always right, and captions (whose scores are graded) that hardly vary. What is always wrong stays: training may change that.
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
#: Verdicts under which a sample stays: what no judge could say is never held against it.
KEPT: tuple[Verdict, ...] = ("kept", "not-judged")


class DropRules(Record):
    #: Drop samples of other tasks than captions whose rollouts all score the maximum.
    drop_always_right: bool
    #: Drop captions whose rollouts' scores (shares of the maximum) have a standard deviation below this; 0 drops none.
    min_spread: Annotated[float, Field(ge=0)]


class Rolled(Record):
    """One sample's rollouts: their scores as shares of the maximum (None: not judged) and what follows from them."""

    schema_version: Literal[1] = 1
    sample_id: str
    task: TaskName
    scores: tuple[float | None, ...] = Field(min_length=1)
    verdict: Verdict

    @property
    def kept(self) -> bool:
        return self.verdict in KEPT


def judged(sample: Sample, scores: Sequence[float | None], rules: DropRules) -> Rolled:
    """What becomes of a sample whose rollouts got these scores.

    ``not-judged`` says that at least one rollout has no score: nothing then holds of all of them, and the sample stays.
    """
    known = [score for score in scores if score is not None]
    verdict: Verdict = "kept"
    if len(known) < len(scores):
        verdict = "not-judged"
    elif task_of(sample.task).answer == "caption":
        # A graded score is judged by how much it varies, the others by whether they are always the maximum.
        # The deviation is of the population: these are all the rollouts there are.
        moves = not paid_alike(known) and not exceeds(rules.min_spread, pstdev(known))
        verdict = "kept" if moves or not rules.min_spread else "never-moves"
    elif rules.drop_always_right and all(score >= 1 for score in known):
        verdict = "always-right"
    return Rolled(sample_id=sample.sample_id, task=sample.task, scores=tuple(scores), verdict=verdict)


class TaskCounts(Record):
    """Samples of one task. ``rolled_out`` = ``kept`` + ``always_right`` + ``never_moves``; ``not_judged`` are among the kept."""

    rolled_out: int
    kept: int
    always_right: int
    never_moves: int
    not_judged: int


def counts(rolled: Sequence[Rolled]) -> Mapping[TaskName, TaskCounts]:
    """By task, in the order in which tasks first appear."""
    by_task: dict[TaskName, Counter[str]] = {}
    for row in rolled:
        by_task.setdefault(row.task, Counter())[row.verdict] += 1
    return {
        task: TaskCounts(
            rolled_out=found.total(),
            kept=sum(found[verdict] for verdict in KEPT),
            always_right=found["always-right"],
            never_moves=found["never-moves"],
            not_judged=found["not-judged"],
        )
        for task, found in by_task.items()
    }
