"""Order of a grid: the start of each seed, then its variants, several at a time.

A seed is a pipeline of its own, so starts depend on nothing, and a variant on the start of its
seed. Nothing here runs or reads anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["start", "variant"]


@dataclass(frozen=True)
class Unit:
    """A part of the grid that runs in one piece: the start of a seed (data, base, the rows that
    lead to the common start, its scores and the baselines), or one variant (training and
    evaluation).

    ``name``: the row that is trained and evaluated.
    """

    seed: int
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.name}"


class Board:
    """Units that wait, run and have ended.

    Args:
        seeds, variants: the grid.
        start: the row that all variants start from.
        done: variants that need not run, as (seed, variant). A seed without any other has nothing
            to run.
        jobs: limit of units at a time.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        start: str,
        variants: Sequence[str],
        done: Collection[tuple[int, str]] = (),
        jobs: int = 1,
    ) -> None:
        self._jobs = jobs
        self.waiting: dict[int, list[Unit]] = {}
        for seed in seeds:
            if missing := [Unit(seed, "variant", name) for name in variants if (seed, name) not in done]:
                self.waiting[seed] = [Unit(seed, "start", start), *missing]
        #: Running units, each with the number of its lane in its seed, from 1 on.
        self.running: dict[Unit, int] = {}
        self.ended: list[Unit] = []
        self.failed: dict[Unit, BaseException] = {}
        #: Variants whose start failed.
        self.skipped: list[Unit] = []

    @property
    def finished(self) -> bool:
        return not self.running and not any(self.waiting.values())

    def startable(self) -> Iterator[tuple[Unit, int]]:
        """Take the units that may start now off the waiting list, and yield each with its lane: 1,
        or another number where units of its seed run already.

        Seeds run side by side first; units of one seed do where there are more jobs than seeds
        left, since each lane needs a copy of its data. One more seed than run at a time is
        started ahead, so that no job waits for a start at the end of another seed.
        """
        while len(self.running) < self._jobs and (unit := self._next()) is not None:
            self.waiting[unit.seed].remove(unit)
            taken = {lane for other, lane in self.running.items() if other.seed == unit.seed}
            self.running[unit] = next(lane for lane in range(1, self._jobs + 1) if lane not in taken)
            yield unit, self.running[unit]

    def _next(self) -> Unit | None:
        busy = {seed: sum(unit.seed == seed for unit in self.running) for seed in self.waiting}
        starting = {unit.seed for unit in self.running if unit.kind == "start"}
        ready = [units[0] for seed, units in self.waiting.items() if units and seed not in starting]
        begun = {unit.seed for unit in (*self.running, *self.ended, *self.failed) if unit.kind == "variant"}
        in_reserve = starting | ({unit.seed for unit in self.ended} - begun)
        ahead = self._jobs > 1 and not in_reserve
        # Of equal ones the first: in the order of the seeds.
        return min(ready, key=lambda unit: (not (ahead and unit.kind == "start"), busy[unit.seed]), default=None)

    def end(self, unit: Unit) -> None:
        del self.running[unit]
        self.ended.append(unit)

    def fail(self, unit: Unit, error: BaseException) -> None:
        """Note a failure. The variants of a start that failed cannot run; nothing else is lost."""
        del self.running[unit]
        self.failed[unit] = error
        if unit.kind == "start":
            self.skipped += self.waiting[unit.seed]
            self.waiting[unit.seed] = []


def seconds_left(
    waiting: Mapping[int, Sequence[Unit]],
    running: Mapping[Unit, float],
    jobs: int,
    takes: Mapping[Kind, float],
) -> float | None:
    """Estimate the time until all units have ended: all work over the jobs, or the longest chain of
    a start and a variant where that is longer.

    Args:
        waiting: units by seed.
        running: seconds that each unit has run.
        takes: seconds of a unit of each kind.

    Returns:
        None if ``takes`` lacks a kind that is left.
    """
    by_seed: dict[int, dict[Kind, list[float]]] = {}
    units = [(unit, 0.0) for units in waiting.values() for unit in units] + list(running.items())
    for unit, elapsed in units:
        if unit.kind not in takes:
            return None
        by_seed.setdefault(unit.seed, {}).setdefault(unit.kind, []).append(max(0.0, takes[unit.kind] - elapsed))
    chains = [sum(max(times) for times in kinds.values()) for kinds in by_seed.values()]
    work = sum(time for kinds in by_seed.values() for times in kinds.values() for time in times)
    return max([work / jobs, *chains])  # 0 where nothing is left
