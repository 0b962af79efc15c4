"""Time that a grid still takes: first from earlier runs in MLflow, then from its own units."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flows.ablation.schedule import Board, Kind, Unit, seconds_left
from stages.params import GrpoRow, Params, SftRow
from stages.tools.ablation.variants import chain_of
from stages.tracking.runs.history import Cost


@dataclass
class Pace:
    """Seconds that a unit of each kind takes: the mean of those that ran in this grid, else the
    ``first`` estimate.
    """

    first: Mapping[Kind, float]
    _measured: dict[Kind, list[float]] = field(default_factory=dict)

    def note(self, kind: Kind, seconds: float) -> None:
        self._measured.setdefault(kind, []).append(seconds)

    @property
    def takes(self) -> dict[Kind, float]:
        return {**self.first, **{kind: fmean(times) for kind, times in self._measured.items()}}


def first_estimate(params: Params, grids: Mapping[str, Sequence[Cost]], runs: Mapping[str, Cost]) -> dict[Kind, float]:
    """Seconds of a start and of a variant, as far as earlier runs say.

    Args:
        grids: costs of the stages of this recipe's grids, by stage.
        runs: cost of each stage of the project itself, used where no grid has run. A variant then
            takes as long as the row that it is like, in proportion to its budget.
    """
    assert params.ablation is not None
    mean = {stage: fmean(cost.wall_s for cost in costs) for stage, costs in grids.items()}
    walls = mean or {stage: cost.wall_s for stage, cost in runs.items() if stage != "summary"}
    chain = chain_of(params)
    of_start = [
        seconds
        for stage, seconds in walls.items()
        if (of := stage.partition("@")[2]) == "" or stage == f"evaluate@{chain[0]}"
        or (of in chain and not stage.startswith("evaluate@"))
    ]  # fmt: skip
    of_variants = []
    for name, row in params.variants.items():
        like = params.ablation.variants[name].like
        counted = name if mean else like
        parts = {stage.partition("@")[0]: s for stage, s in walls.items() if stage.partition("@")[2] == counted}
        if "evaluate" not in parts or len(parts) < 2:
            continue
        share = 1.0 if mean else _budget(row) / _budget(params.rows[like])
        of_variants.append(sum(s * (share if part in ("sft", "grpo") else 1) for part, s in parts.items()))
    found: dict[Kind, float] = {}
    if f"evaluate@{chain[0]}" in walls:
        found["start"] = sum(of_start)
    if of_variants:
        found["variant"] = fmean(of_variants)
    return found


def _budget(row: SftRow | GrpoRow) -> int:
    """Rollouts of a training; its steps where it has none."""
    return row.steps * (row.prompts_per_step * row.rollouts if isinstance(row, GrpoRow) else 1)


@dataclass(frozen=True)
class _Snapshot:
    ended: int
    waiting: Mapping[int, tuple[Unit, ...]]
    running: Mapping[Unit, float]


class Progress:
    """Count of a grid's trainings, and an estimate of the time left. The thread that shows it may
    be another than the one that runs the grid.

    Args:
        total: trainings of the whole grid.
        found: trainings among them that an earlier run has done.
    """

    def __init__(self, total: int, found: int, jobs: int, pace: Pace) -> None:
        self.total, self._found, self._jobs, self.pace = total, found, jobs, pace
        self._started: dict[Unit, float] = {}
        self._now = _Snapshot(0, {}, {})

    def started(self, board: Board, unit: Unit) -> None:
        self._started[unit] = time.monotonic()
        self._take(board)

    def ended(self, board: Board, unit: Unit, *, worked: bool) -> None:
        """Take note of the end of a unit. ``worked``: its stages ran, so that its time counts."""
        if worked:
            self.pace.note(unit.kind, time.monotonic() - self._started[unit])
        self._take(board)

    def _take(self, board: Board) -> None:
        self._now = _Snapshot(
            sum(unit.kind == "variant" for unit in board.ended),
            {seed: tuple(units) for seed, units in board.waiting.items()},
            {unit: self._started[unit] for unit in board.running if unit in self._started},
        )

    def __str__(self) -> str:
        now = self._now
        done = f"{self._found + now.ended} of {self.total}"
        clock = time.monotonic()
        running = {unit: clock - since for unit, since in now.running.items()}
        left = seconds_left(now.waiting, running, self._jobs, self.pace.takes)
        parts = [done]
        if running:
            parts.append(f"{len(running)} running")
        if left is not None and (running or any(now.waiting.values())):
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "1 min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
