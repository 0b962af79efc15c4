"""One module per task: its samples, their synthesis, the question and the scoring of replies.

:data:`TASKS` lists the tasks of this package. A project may have tasks of its own, which
:mod:`stages.params.own_tasks` loads and :func:`use_own_tasks` adds; :func:`every_task` lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from stages.domain.tasks import caption, dark_event_infer, mcqa, mix_vid_qa, qa, structured_caption
from stages.domain.tasks.task import Task

#: Every task of this package. Tables and pages list them in this order, then a project's own.
TASKS: tuple[Task[Any], ...] = (
    dark_event_infer.TASK,
    mix_vid_qa.TASK,
    mcqa.TASK,
    qa.TASK,
    caption.TASK,
    structured_caption.TASK,
)
TASK_NAMES = tuple(task.name for task in TASKS)

#: Type of the errors of validation about a name that no task has.
UNKNOWN_TASK = "unknown_task"

_BY_NAME = {task.name: task for task in TASKS}
_own: dict[str, Task[Any]] = {}
_again: Callable[[], None] | None = None


def use_own_tasks(tasks: Sequence[Task[Any]], again: Callable[[], None] | None) -> None:
    """Make these the project's own tasks in this process, instead of those before. Their names are
    unique, also among :data:`TASK_NAMES`.

    ``again``: makes them known in another process, where settings of theirs are unpickled; it can
    be pickled itself. None: there are no tasks.
    """
    global _own, _again
    _own, _again = {task.name: task for task in tasks}, again


def own_tasks() -> tuple[Task[Any], ...]:
    """The project's own tasks, in the order in which its modules define them."""
    return tuple(_own.values())


def own_tasks_again() -> Callable[[], None]:
    """The function that makes the project's own tasks known in another process.

    Raises:
        ValueError: the project has no tasks of its own.
    """
    if _again is None:
        raise ValueError("there are no tasks of the project's own")
    return _again


def every_task() -> tuple[Task[Any], ...]:
    """Every task: those of this package, then the project's own."""
    return (*TASKS, *_own.values())


def task_names() -> tuple[str, ...]:
    return tuple(task.name for task in every_task())


def task_of(name: str) -> Task[Any]:
    """Look up the task of that name.

    Raises:
        ValueError: no task has that name.
    """
    if (task := _BY_NAME.get(name) or _own.get(name)) is None:
        raise ValueError(f"task: {unknown_task(name)}")
    return task


def unknown_task(name: str) -> str:
    """The problem of a name that no task has, and its remedy."""
    return f"{name!r} is not a task; name one of {', '.join(task_names())}, or the module that defines it: tasks.module"


def unknown_task_error(name: str) -> PydanticCustomError:
    """Build the error of a validator that met such a name; its type is :data:`UNKNOWN_TASK`."""
    return PydanticCustomError(UNKNOWN_TASK, "{problem}", {"problem": unknown_task(name)})


def is_analysed(name: str) -> bool:
    """True if the thinking of the task's replies is an analysis; never of a project's own task,
    known here or not."""
    return name in _BY_NAME and _BY_NAME[name].analysed


def _known(name: str) -> str:
    if name not in task_names():
        raise unknown_task_error(name)
    return name


#: The type of a task's name in input; rows hold :data:`~stages.domain.core.records.TaskName`. Its
#: schema lists the tasks of this package.
KnownTask = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(TASK_NAMES)})]
