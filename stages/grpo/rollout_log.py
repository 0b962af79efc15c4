"""Rollout log: some rollouts of each step that ends in a checkpoint, with their rewards, for people
to read.

Until training has ended they are kept in the stage's scratch folder,
``rollouts/step-<step>.jsonl``, as checkpoints are: a run that was killed keeps the logged steps and
samples the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.domain.core.frames import Frames
from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Sample
from stages.domain.rl.rollouts import Rollout, RolloutGroup, shown_groups
from stages.lib.rows.jsonl import iterate_rows, write_rows
from stages.pages.rollouts import rollout_page
from stages.params import GrpoRow
from stages.runtime import paths


@dataclass(frozen=True)
class RolloutLog:
    """Rollout log of one GRPO row: which samples it keeps, how often, and the page it writes.

    Attributes:
        samples: samples by id.
        texts: fixed texts of the prompts.
        frames: loads the frames of a sample.
        on_page: called with the name and the HTML of each page when it is rendered, before the step
            is taken.
    """

    stage: str
    row: GrpoRow
    scratch: Path
    samples: Mapping[str, Sample]
    texts: PromptTexts
    frames: Callable[[Sample], Frames]
    on_page: Callable[[str, str], None]

    def due(self, step: int) -> bool:
        """Return whether this step ends in a checkpoint."""
        return step % self.row.save_steps == 0 or step == self.row.steps

    def keep(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Log some groups of a step's rollouts (of all processes). A step that is repeated after a
        restart replaces its first log."""
        groups = shown_groups(step, rollouts, self.row.rollouts, self.samples, self.texts)
        frames = (self.frames(self.samples[group.sample_id]) for group in groups)
        self.on_page(f"rollouts/step-{step:08d}.html", rollout_page(self.stage, step, groups, frames))
        write_rows(self._folder / f"step-{step:08d}.jsonl", groups)

    def collect(self, out: Path) -> None:
        """Write all logged groups into the stage's out, in order of steps."""
        files = sorted(self._folder.glob("step-*.jsonl"))
        write_rows(out / paths.ROLLOUTS_FILE, (row for file in files for row in iterate_rows(file, RolloutGroup)))

    @property
    def _folder(self) -> Path:
        return self.scratch / "rollouts"
