"""Rollouts that are kept for people to read: those of each step that ends in a checkpoint, so that a person sees what was paid for.

They lie in a stage's scratch folder, ``rollouts/step-<step>.jsonl``, until training has ended, as what is saved does: a run that was
killed goes on with those that it has, and draws the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.domain.core.records import Score
from stages.domain.rl.rollouts import Rollout, RolloutGroup
from stages.lib.rows.jsonl import iterate_rows, write_rows
from stages.runtime import paths

#: What replies are worth, by sample.
Scores = Callable[[Sequence[str], Sequence[str]], Sequence[Score]]
#: Chooses, of all rollouts of a step, those that are kept.
Choose = Callable[[int, Sequence[Rollout]], Sequence[RolloutGroup]]


@dataclass(frozen=True)
class Showing:
    """What to keep.

    Attributes:
        scores: called on every process, right after the rewards of the same replies.
        choose: called on the first process, with the rollouts of all.
    """

    scores: Scores
    choose: Choose


@dataclass(frozen=True)
class Keeper:
    """Keeps rollouts of a run in its scratch folder.

    Attributes:
        save_steps, steps: a step that is a multiple of the first, or the last, ends in a checkpoint.
    """

    showing: Showing
    scratch: Path
    save_steps: int
    steps: int

    def due(self, step: int) -> bool:
        return step % self.save_steps == 0 or step == self.steps

    def keep(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Keep what is chosen of a step's rollouts; those of a step that is taken a second time replace the first."""
        write_rows(self._folder / f"step-{step:08d}.jsonl", self.showing.choose(step, rollouts))

    def publish(self, out: Path) -> None:
        """Lay all that was kept into the stage's out, step by step."""
        files = sorted(self._folder.glob("step-*.jsonl"))
        write_rows(out / paths.ROLLOUTS_FILE, (row for file in files for row in iterate_rows(file, RolloutGroup)))

    @property
    def _folder(self) -> Path:
        return self.scratch / "rollouts"
