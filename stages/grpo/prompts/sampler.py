"""Sampler that keeps the ratio of live groups between tasks.

A group whose rewards are all equal teaches nothing, so a task whose groups are dead more often than
others' has less than its weight in the gradient. With weights w, live shares p (estimated,
:class:`LiveEstimate`) and their bound f, task k gets the share

    s_k = (w_k / max(p_k, f)) / sum_j (w_j / max(p_j, f))

of the prompts, so that its expected number of live groups, s_k p_k, is in proportion to w_k
wherever p_k >= f.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.domain.core.records import TaskName
from stages.lib.training.mixture import Example, Mixture
from stages.params import LiveRatio


class LiveEstimate:
    """Moving share of live groups: (L + 1) / (N + 1), with L live ones of N, both multiplied by
    ``decay`` before a generation is added. The 1 stands for one live group seen in advance."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.live = self.counted = 0.0

    @property
    def share(self) -> float:
        return (self.live + 1) / (self.counted + 1)

    def add(self, live: int, counted: int, *, decay: bool = True) -> None:
        """Count groups; ``decay=False`` for further groups of the same generation."""
        factor = self._decay if decay else 1.0
        self.live, self.counted = factor * self.live + live, factor * self.counted + counted


class TaskSampler:
    """Prompts of a row, drawn generation by generation; all processes of a job draw the same.

    Args:
        weights: the row's weights of its tasks.
    """

    def __init__(
        self, examples: Sequence[Example], weights: Mapping[TaskName, float], seed: str, rule: LiveRatio
    ) -> None:
        self._examples, self._rule = examples, rule
        self._mixture = Mixture(examples, weights, seed)
        self._weights = dict(self._mixture.shares)
        self._live = {task: LiveEstimate(rule.live_decay) for task in self._weights}

    def take(self, count: int) -> list[str]:
        """Draw the sample ids of the next ``count`` prompts."""
        wanted = {
            task: weight / max(self._live[task].share, self._rule.least_live) for task, weight in self._weights.items()
        }
        total = sum(wanted.values())
        self._mixture.shares = {task: value / total for task, value in wanted.items()}
        return [self._examples[self._mixture.next()].sample_id for _ in range(count)]

    def observe(self, groups: Sequence[tuple[TaskName, bool]]) -> None:
        """Update the live shares with the groups of a generation: task, and whether it is live."""
        for task, estimate in self._live.items():
            own = [live for name, live in groups if name == task]
            if own:  # a task that was not asked keeps its estimate
                estimate.add(sum(own), len(own))

    def shares(self) -> dict[TaskName, float]:
        """Share of each task in the latest draw."""
        return dict(self._mixture.shares)

    def live_shares(self) -> dict[TaskName, float]:
        """Estimated share of live groups of each task."""
        return {task: estimate.share for task, estimate in self._live.items()}

    @property
    def drawn(self) -> dict[TaskName, int]:
        """Prompts of each task drawn so far, also before a resumption."""
        return dict(self._mixture.drawn)

    def save(self, file: Path) -> None:
        live = {task: [estimate.live, estimate.counted] for task, estimate in self._live.items()}
        file.write_text(json.dumps({"mixture": self._mixture.state(), "live": live}), encoding="utf-8")

    def load(self, file: Path) -> None:
        """Restore the state that :meth:`save` wrote.

        Raises:
            FileNotFoundError: the checkpoint was saved by a training with another sampler.
        """
        state = json.loads(file.read_text(encoding="utf-8"))
        self._mixture.restore(state["mixture"])
        for task, (live, counted) in state["live"].items():
            self._live[task].live, self._live[task].counted = live, counted
