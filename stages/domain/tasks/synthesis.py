"""Which samples a set of clips gives: every task that is asked for, each clip with a generator of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import create_model

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample
from stages.domain.tasks import TASKS, task_of
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context, Made, S, Task

_FIELDS: dict[str, Any] = {task.name: (task.settings | None, None) for task in TASKS}
_Fields: Any = create_model("_Fields", __base__=Record, **_FIELDS)


class TaskSettings(_Fields):
    """Settings of the tasks that are synthesised, a field a task; a task that is not named is not made."""

    @property
    def named(self) -> tuple[str, ...]:
        """The tasks that are made, in the order of :data:`~stages.domain.tasks.TASKS`."""
        return tuple(task.name for task in TASKS if self.of(task) is not None)

    def of(self, task: Task[S]) -> S | None:
        """The settings of a task; None where it is not made."""
        found: S | None = getattr(self, task.name)
        return found


def samples_of(clip: Clip, task: str, settings: TaskSettings, context: Context) -> Made:
    """The samples that one clip gives of one task, and what had to be set aside.

    Raises:
        ValueError: the task has no settings, so it is not to be made.
    """
    chosen = settings.of(task_of(task))
    if chosen is None:
        raise ValueError(f"synthesize.tasks.{task}: not set; give it settings to have it made")
    return task_of(task).make(clip, chosen, context)


def synthesise(
    clips: Sequence[Clip], task: str, settings: TaskSettings, sampled_frames: int, seed: int
) -> Iterator[tuple[Clip, list[Sample], list[Reject]]]:
    """The samples of one task of clips that are in memory, clip by clip in the order given, with what had to be set aside."""
    rings = {split: ring_of([clip for clip in clips if clip.split == split]) for split in SPLITS}
    for clip in clips:
        yield clip, *samples_of(clip, task, settings, Context(sampled_frames, seed, rings[clip.split]))
