"""Scores of a GRPO step's rollouts: the record that rewards make once and hand to the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from stages.domain.core.records import Score


@dataclass(frozen=True)
class StepScores:
    """Scores of one process's replies in a round of generation. Each sequence has one entry a reply, in order.

    Attributes:
        scores: the task's score of each reply.
        total: the task's reward, for the report; None where no judge could say (such a rollout is left out of its group).
        objectives: by name, what an advantage is made of, before weights; None: this reply has none.
        gauges: what to watch beside the rewards.

    Raises:
        ValueError: an objective has not one value a reply, or one that is infinite.
    """

    scores: Sequence[Score]
    total: Sequence[float | None]
    objectives: Mapping[str, Sequence[float | None]]
    gauges: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, values in self.objectives.items():
            if len(values) != len(self.scores):
                raise ValueError(
                    f"{name}: gave {len(values)} values for {len(self.scores)} replies; give one each, None where there is none"
                )
            for score, value in zip(self.scores, values, strict=True):
                if value is not None and math.isinf(value):
                    raise ValueError(
                        f"{name}: gave {value} for a reply to {score.sample_id}, and its group would have no advantage;"
                        " give a finite number, or None where there is none"
                    )

    @property
    def shares(self) -> list[float | None]:
        """Share of the task's maximum that each reply earns."""
        return [score.value for score in self.scores]

    @property
    def well_formed(self) -> list[bool]:
        """Whether each reply has the required form. For the share that is reported; the reward has its own gate."""
        return [score.format_ok for score in self.scores]

    def with_objective(self, name: str, values: Sequence[float | None]) -> StepScores:
        return replace(self, objectives={**self.objectives, name: values})

    def paid(self) -> list[dict[str, float | None]]:
        """By reply, the value of each objective."""
        return [{name: values[row] for name, values in self.objectives.items()} for row in range(len(self.scores))]


@dataclass(frozen=True)
class Round:
    """Scored rollouts of one round of generation; a step has one, and one more for each round of dynamic sampling.

    Attributes:
        scores: of this process's rows.
        rewards_BK: of the rows of all processes, by objective; NaN: there is none.
    """

    scores: StepScores
    rewards_BK: torch.Tensor

    @property
    def masked_B(self) -> torch.Tensor:
        """Rollouts of all processes without any reward. They are left out of their group's mean and spread, and their advantage is 0; so
        is that of a rollout that is the only one of its group with a reward."""
        return torch.isnan(self.rewards_BK).all(dim=1)


class Rewards(Protocol):
    """Rewards of a GRPO row, by prompts' sample ids and the replies beside them; the replies to a prompt stand together."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each objective of :meth:`score`, in order."""
        ...

    def score(self, ids: Sequence[str], replies: Sequence[str]) -> StepScores:
        """Score this process's replies in a round of generation; called once a round."""
        ...

    def shares(self, ids: Sequence[str], replies: Sequence[str]) -> Sequence[float | None]:
        """Share of the task's maximum that replies to other videos earn; None where no judge could say."""
        ...

    def control_gauges(self, own: float, blank: float | None, shuffled: float | None) -> Mapping[str, float]:
        """Gauges of the mean share that is earned on the prompts' own videos, on black and on shuffled ones; asked on the first process."""
        ...

    def check_masked(self, masked: int, rollouts: int) -> None:
        """Refuse to take a step where too many of its rollouts have no reward; what it raises ends training.

        Called on every process, with the counts over all processes. Where groups are replaced it is called again with all that have
        been drawn for the step so far.
        """
        ...
