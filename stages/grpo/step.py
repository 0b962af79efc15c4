"""Scores of a GRPO step's rollouts: the record that the rewards create once and the trainer
reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from stages.domain.core.records import Score


@dataclass(frozen=True)
class StepScores:
    """Scores of one process's replies in a round of generation. Each sequence has one entry per
    reply, in order.

    Attributes:
        scores: task score of each reply.
        total: task reward of each reply, for logging; None where the judge gave no verdict (such a
            rollout is left out of its group).
        objectives: values that advantages are computed from, by name and before weights; None where
            a reply has no value.
        gauges: gauges of reward hacking, by name.

    Raises:
        ValueError: an objective does not have one value per reply, or has an infinite one.
    """

    scores: Sequence[Score]
    total: Sequence[float | None]
    objectives: Mapping[str, Sequence[float | None]]
    gauges: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, values in self.objectives.items():
            if len(values) != len(self.scores):
                raise ValueError(
                    f"{name}: has {len(values)} values for {len(self.scores)} replies; return one each, None where"
                    " there is none"
                )
            for score, value in zip(self.scores, values, strict=True):
                if value is not None and math.isinf(value):
                    raise ValueError(
                        f"{name}: is {value} for a reply to {score.sample_id}, and its group would have no advantage;"
                        " return a finite number, or None where there is none"
                    )

    @property
    def shares(self) -> list[float | None]:
        """Score of each reply as a fraction of the task's maximum."""
        return [score.value for score in self.scores]

    @property
    def well_formed(self) -> list[bool]:
        """Flag of each reply that has the required form. For the logged fraction only; the reward
        has its own gate."""
        return [score.format_ok for score in self.scores]

    def with_objective(self, name: str, values: Sequence[float | None]) -> StepScores:
        return replace(self, objectives={**self.objectives, name: values})

    def paid(self) -> list[dict[str, float | None]]:
        """Value of each objective, by reply."""
        return [{name: values[row] for name, values in self.objectives.items()} for row in range(len(self.scores))]


@dataclass(frozen=True)
class Round:
    """Scored rollouts of one round of generation; a step has one round, and one more for each round
    of dynamic sampling.

    Attributes:
        scores: scores of this process's rows.
        rewards_BK: rewards of the rows of all processes, by objective; NaN where there is none.
    """

    scores: StepScores
    rewards_BK: torch.Tensor

    @property
    def masked_B(self) -> torch.Tensor:
        """Mask of the rollouts of all processes that have no reward.

        They are left out of their group's mean and spread, and their advantage is 0. The advantage
        of a rollout that is the only one of its group with a reward is 0 as well.
        """
        return torch.isnan(self.rewards_BK).all(dim=1)


class Rewards(Protocol):
    """Rewards of a GRPO row, from the sample ids of prompts and the reply to each; replies to one
    prompt are consecutive."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each objective of :meth:`score`, in order."""
        ...

    def score(self, ids: Sequence[str], replies: Sequence[str], written: Collection[int] = ()) -> StepScores:
        """Score this process's replies in a round of generation; called once a round.

        Args:
            written: positions of replies that the policy did not sample. They are scored, and are
                not in the gauges.
        """
        ...

    def shares(self, ids: Sequence[str], replies: Sequence[str]) -> Sequence[float | None]:
        """Scores of replies to changed videos, as fractions of the task's maximum; None where the
        judge gave no verdict."""
        ...

    def control_gauges(self, own: float, blank: float | None, shuffled: float | None) -> Mapping[str, float]:
        """Gauges from the mean scores on the prompts' own videos, on black and on shuffled ones;
        called on the first process."""
        ...

    def check_masked(self, masked: int, rollouts: int) -> None:
        """Raise an error, which ends training, where too many rollouts of a step have no reward.

        Called on every process, with the counts over all processes. With dynamic sampling it is
        called again after each round, with all rollouts of the step so far.
        """
        ...
