"""Advantages of rollouts over their group, as in GRPO, Dr.GRPO and GDPO, or with a moving spread
per task.

They replace TRL's advantages. TRL 1.16 subtracts a mean and divides by a spread in single
precision. For a group whose rewards are all 0.7, that leaves 6e-4 to 1.2e-3 instead of 0. Here
equality is decided on the rewards first (:mod:`stages.domain.rl.groups`), and the advantages of
such a group are exactly 0 under every scale.

A scale per task is needed because the rewards of tasks differ in spread: multiple choice earns 0 or
1, while the score of a caption moves by hundredths. Divided by the spread of its own group, a tiny
difference between two captions counts as much as right against wrong; undivided, captions teach
almost nothing. EMA-GRPO (named in SPEC 4 of this project's sources; OneThinker, arXiv 2512.03043)
divides by a moving spread of the task instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from stages.domain.rl.groups import paid_alike

#: Added to a spread before dividing by it, as in TRL: the rewards of a task may never have
#: differed.
EPSILON = 1e-4


def alike_groups(rewards_PG: torch.Tensor) -> torch.Tensor:
    """Mask of the groups with equal rewards, ``[prompts]``; NaN is an unknown reward."""
    return torch.tensor(
        [paid_alike(group) for group in rewards_PG.tolist()], dtype=torch.bool, device=rewards_PG.device
    )


def deviations(rewards_PG: torch.Tensor) -> torch.Tensor:
    """Subtract from each reward the mean of the known rewards of its group, in double precision.

    Exactly 0 where all rewards of a group are equal; NaN where the reward is unknown.
    """
    rewards_PG = rewards_PG.double()
    from_mean_PG = rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)
    alike_P1 = alike_groups(rewards_PG)[:, None]
    return torch.where(alike_P1 & ~torch.isnan(rewards_PG), 0.0, from_mean_PG)


def summed(rewards_PGK: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the known parts of each rollout's reward, ``[prompts, rollouts]``, in double
    precision; NaN where no part is known."""
    total_PG = (rewards_PGK.double() * weights_K.double()).nansum(dim=2)
    return torch.where(torch.isnan(rewards_PGK).all(dim=2), torch.nan, total_PG)


def scaled(rewards_PG: torch.Tensor, scale: Literal["group", "batch", "none"]) -> torch.Tensor:
    """Advantages of summed rewards, ``[prompts, rollouts]``, in double precision.

    Args:
        rewards_PG: NaN is an unknown reward; it is left out of every mean, and its advantage is 0.
        scale: divide the deviations by the unbiased spread of the group (GRPO), of all rewards of
            the batch, or by nothing (Dr.GRPO).
    """
    deviations_PG = deviations(rewards_PG)
    if scale == "group":
        deviations_PG = deviations_PG / (_spread(deviations_PG)[:, None] + EPSILON)
    elif scale == "batch":
        batch_1B = rewards_PG.double().reshape(1, -1)
        deviations_PG = deviations_PG / (_spread(batch_1B - batch_1B.nanmean())[:, None] + EPSILON)
    return torch.nan_to_num(deviations_PG, nan=0.0)


def normalised(rewards_PGK: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """Advantages of rewards in parts (GDPO), ``[prompts, rollouts]``, in double precision.

    Each part is divided by its spread in the group, the parts are added with their weights, and the
    sum is divided by its spread in the batch. A part that is equal for a whole group adds 0; where
    the parts cancel, the group has no advantage.
    """
    prompts, rollouts, parts = rewards_PGK.shape
    parts_PGK = torch.stack([scaled(rewards_PGK[:, :, part], "group") for part in range(parts)], dim=2)
    parts_PGK = torch.where(torch.isnan(rewards_PGK), torch.nan, parts_PGK)
    # Every part is 0 on average over each group's known rewards, and so is their sum over the
    # batch.
    total_PG = deviations(summed(parts_PGK, weights_K))
    return torch.nan_to_num(total_PG / (_spread(total_PG.reshape(1, prompts * rollouts)) + EPSILON), nan=0.0)


def _spread(deviations_PB: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation of each row, given deviations from its mean, ``[rows]``; 0 where
    fewer than two are known."""
    counted_P = (~torch.isnan(deviations_PB)).sum(dim=1)
    return (deviations_PB.square().nansum(dim=1) / (counted_P - 1).clamp(min=1)).sqrt()


class _Moment(NamedTuple):
    """Moving average of the variance within a group. ``mean`` is not bias-corrected; ``updates``
    counts its updates."""

    mean: float
    updates: int


class TaskScales:
    """Moving spread of each task's rewards.

    For task k, v_k is the mean over its groups of the unbiased variance of the rewards in a group;
    m_k <- d m_k + (1 - d) v_k, and the spread is sqrt(m_k / (1 - d^t)) after t updates, as Adam
    corrects its moments (Kingma and Ba, arXiv 1412.6980).

    Args:
        decay: d, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._moments: dict[str, _Moment] = {}

    def spread(self, task: str) -> float:
        """Current spread of a task; 0 before its first update."""
        moment = self._moments.get(task)
        return 0.0 if moment is None else math.sqrt(moment.mean / (1 - self.decay**moment.updates))

    def advantages(self, rewards_PG: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """Update the scales with these groups and return their advantages, ``[prompts, rollouts]``,
        in double precision.

        Args:
            rewards_PG: rewards of ``rollouts`` replies to each prompt. NaN is an unknown reward; it
                is left out of every mean, and its advantage is 0.
            tasks: task of each prompt.
        """
        deviations_PG = deviations(rewards_PG)
        counted_P = (~torch.isnan(rewards_PG)).sum(dim=1)
        for task in sorted(set(tasks)):
            rows = torch.tensor([name == task for name in tasks], device=rewards_PG.device) & (counted_P > 1)
            if rows.any():
                variances = deviations_PG[rows].square().nansum(dim=1) / (counted_P[rows] - 1)
                before = self._moments.get(task, _Moment(0.0, 0))
                mean = self.decay * before.mean + (1 - self.decay) * variances.mean().item()
                self._moments[task] = _Moment(mean, before.updates + 1)
        spreads_P = torch.tensor(
            [self.spread(task) for task in tasks], device=rewards_PG.device, dtype=deviations_PG.dtype
        )
        return torch.nan_to_num(deviations_PG / (spreads_P[:, None] + EPSILON), nan=0.0)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(dict(sorted(self._moments.items()))), encoding="utf-8")

    def load(self, file: Path) -> None:
        """Restore the scales that :meth:`save` wrote.

        Raises:
            FileNotFoundError: the checkpoint was saved by a training without moving scales.
        """
        self._moments = {
            task: _Moment(*moment) for task, moment in json.loads(file.read_text(encoding="utf-8")).items()
        }


def with_advantage(inputs: dict[str, Any], most_of_any_process: Callable[[int], int]) -> dict[str, Any]:
    """Keep the rows of a batch that carry a gradient: rollouts of groups whose rewards differ.

    A third to a half of a good policy's rollouts carry none. Metrics of the loss (entropy,
    clipping) are then means over the rows that are kept. TRL gathers values of each row from all
    processes, so every process keeps as many rows as the one with the most, and at least one; rows
    without an advantage fill the gap.
    """
    advantages = inputs["advantages"]
    carries = advantages.reshape(len(advantages), -1).any(dim=1)
    count = most_of_any_process(max(1, int(carries.sum().item())))
    if count == len(advantages):
        return inputs
    rows = carries.long().sort(descending=True, stable=True).indices[:count].sort().values

    def chosen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == len(advantages):
            return value[rows]
        return (
            [value[row] for row in rows.tolist()]
            if isinstance(value, list) and len(value) == len(advantages)
            else value
        )

    return {name: chosen(value) for name, value in inputs.items()}
