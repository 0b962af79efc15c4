"""Synthesis of samples from clips, for every task that has settings; each clip has its own random
generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import create_model

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks import TASKS, task_of
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context, S, Task, TaskSamples

_FIELDS: dict[str, Any] = {task.name: (task.settings | None, None) for task in TASKS}
_Fields: Any = create_model("_Fields", __base__=Record, **_FIELDS)


class TaskSettings(_Fields):
    """Settings of the tasks to synthesise, one field per task; a task without settings is not
    synthesised."""

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the tasks to synthesise, in the order of :data:`~stages.domain.tasks.TASKS`."""
        return tuple(task.name for task in TASKS if self.of(task) is not None)

    def of(self, task: Task[S]) -> S | None:
        """Look up the settings of a task; None if it is not to be synthesised."""
        settings: S | None = getattr(self, task.name)
        return settings


def samples_of(clip: Clip, task: str, settings: TaskSettings, context: Context) -> TaskSamples:
    """Make the samples of one clip for one task, and the rejects.

    Raises:
        ValueError: the task has no settings.
    """
    chosen = settings.of(task_of(task))
    if chosen is None:
        raise ValueError(f"synthesize.tasks.{task}: not set; add its settings to synthesise it")
    return task_of(task).make(clip, chosen, context)


def synthesise(
    clips: Sequence[Clip], task: str, settings: TaskSettings, sampled_frames: SampledFrames, seed: int
) -> Iterator[tuple[Clip, list[Sample], list[Reject]]]:
    """Make the samples of one task from clips in memory, clip by clip in the given order, with the
    rejects."""
    rings = {split: ring_of([clip for clip in clips if clip.split == split]) for split in SPLITS}
    for clip in clips:
        yield clip, *samples_of(clip, task, settings, Context(sampled_frames, seed, rings[clip.split]))
