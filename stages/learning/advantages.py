"""Advantages on a scale that belongs to each task and moves with training.

Rewards of different tasks differ in spread: multiple choice is 0 or 1, a caption's share moves by hundredths. Divided by its own group's
spread, a hair's breadth between two captions counts as much as right against wrong; undivided, captions teach next to nothing. EMA-GRPO
(named in SPEC 4 of this project's sources; OneThinker, arXiv 2512.03043) divides by a moving spread of the task instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

#: Keeps a task whose rewards have never differed from dividing by zero; TRL's own.
EPSILON = 1e-4


class _Moment(NamedTuple):
    """``mean``: moving average of the variance within a group, not corrected; ``updates``: how many it has seen."""

    mean: float
    updates: int


class TaskScales:
    """The moving spread of each task's rewards.

    For task k, v_k is the mean over its groups of the unbiased variance of the rewards in a group; m_k <- d m_k + (1 - d) v_k, and the
    spread is sqrt(m_k / (1 - d^t)) after t updates, as Adam corrects its moments (Kingma and Ba, arXiv 1412.6980).

    Args:
        decay: d, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._moments: dict[str, _Moment] = {}

    def spread(self, task: str) -> float:
        """The present spread of a task; 0 where none of its groups has been seen."""
        moment = self._moments.get(task)
        return 0.0 if moment is None else math.sqrt(moment.mean / (1 - self.decay**moment.updates))

    def advantages(self, rewards_PG: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """Update the scales with these groups and return their advantages, ``[prompts, rollouts]``.

        Args:
            rewards_PG: rewards of ``rollouts`` replies to each prompt. NaN: there is none; it is in no mean, and the advantage is 0.
            tasks: each prompt's task.
        """
        deviations_PG = rewards_PG - torch.nanmean(rewards_PG, dim=1, keepdim=True)
        counted_P = (~torch.isnan(rewards_PG)).sum(dim=1)
        for task in sorted(set(tasks)):
            rows = torch.tensor([name == task for name in tasks], device=rewards_PG.device) & (counted_P > 1)
            if rows.any():
                variances = deviations_PG[rows].square().nansum(dim=1) / (counted_P[rows] - 1)
                before = self._moments.get(task, _Moment(0.0, 0))
                mean = self.decay * before.mean + (1 - self.decay) * variances.mean().item()
                self._moments[task] = _Moment(mean, before.updates + 1)
        spreads_P = torch.tensor([self.spread(task) for task in tasks], device=rewards_PG.device, dtype=rewards_PG.dtype)
        return torch.nan_to_num(deviations_PG / (spreads_P[:, None] + EPSILON), nan=0.0)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(dict(sorted(self._moments.items()))), encoding="utf-8")

    def load(self, file: Path) -> None:
        """
        Raises:
            FileNotFoundError: the checkpoint was saved by a training without moving scales.
        """
        self._moments = {task: _Moment(*moment) for task, moment in json.loads(file.read_text(encoding="utf-8")).items()}
