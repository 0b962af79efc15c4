"""One module per task: its samples, their synthesis, the question and the scoring of replies.
:data:`TASKS` lists the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa, qa, structured_caption
from stages.domain.tasks.task import Task

#: Every task. Tables and pages list them in this order.
TASKS: tuple[Task[Any], ...] = (
    dark_event_infer.TASK,
    mix_vid_qa.TASK,
    mcqa.TASK,
    qa.TASK,
    caption.TASK,
    structured_caption.TASK,
)
TASK_NAMES = tuple(task.name for task in TASKS)

if TYPE_CHECKING:
    KnownTask = str
else:
    #: The type of a task's name in input; rows hold :data:`~stages.domain.core.records.TaskName`.
    KnownTask = Literal[TASK_NAMES]

_BY_NAME = {task.name: task for task in TASKS}


def task_of(name: str) -> Task[Any]:
    """Look up the task of that name.

    Raises:
        ValueError: no task has that name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"task: {name!r} is not a task; name one of {', '.join(TASK_NAMES)}")
    return _BY_NAME[name]
