"""Synthesis of samples from clips, for every task that has settings; each clip has its own random
generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails

from stages.domain.core.records import SPLITS, Clip, Record, Reject, Sample
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks import TASKS, own_tasks, own_tasks_again, task_of, unknown_task_error
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context, S, Task, TaskSamples

_FIELDS: dict[str, Any] = {task.name: (task.settings | None, None) for task in TASKS}
_Fields: Any = create_model("_Fields", __base__=Record, **_FIELDS)


class TaskSettings(_Fields):
    """Settings of the tasks to synthesise, one field per task; a task without settings is not
    synthesised. A project's own tasks are further fields."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _own_are_of_their_type(cls, raw: Any) -> Any:
        """Validate the settings of the project's own tasks, and refuse names of no task."""
        if not isinstance(raw, Mapping):
            return raw
        ours = {name: value for name, value in raw.items() if name in cls.model_fields}
        others = {name: value for name, value in raw.items() if name not in ours}
        model = _own_settings(own_tasks())
        for name, value in others.items():
            if name not in model.model_fields:
                details = InitErrorDetails(type=unknown_task_error(str(name)), loc=(str(name),), input=value)
                raise ValidationError.from_exception_data(cls.__name__, [details])
        own = model.model_validate(others)
        return ours | {
            name: settings for name in type(own).model_fields if (settings := getattr(own, name)) is not None
        }

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A new process does not know the classes of a project's own settings before it loads them.
        if not self.model_extra:
            return super().__reduce_ex__(protocol)
        return _restored, (own_tasks_again(), self.model_dump())

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the tasks to synthesise, in the order of
        :func:`~stages.domain.tasks.every_task`."""
        return (*(task.name for task in TASKS if self.of(task) is not None), *(self.model_extra or ()))

    def of(self, task: Task[S]) -> S | None:
        """Look up the settings of a task; None if it is not to be synthesised."""
        settings: S | None = getattr(self, task.name, None)
        return settings


@lru_cache(maxsize=1)
def _own_settings(tasks: tuple[Task[Any], ...]) -> Any:
    fields: dict[str, Any] = {task.name: (task.settings | None, None) for task in tasks}
    return create_model("_OwnSettings", __base__=Record, **fields)


def _restored(again: Callable[[], None], settings: Mapping[str, Any]) -> TaskSettings:
    again()
    return TaskSettings.model_validate(settings)


def samples_of(clip: Clip, task: str, settings: TaskSettings, context: Context) -> TaskSamples:
    """Make the samples of one clip for one task, and the rejects.

    A clip whose ``answers`` for the task do not have the fields of its type is a reject
    ``bad-answers``.

    Raises:
        ValueError: the task has no settings.
    """
    definition = task_of(task)
    chosen = settings.of(definition)
    if chosen is None:
        raise ValueError(f"synthesize.tasks.{task}: not set; add its settings to synthesise it")
    if clip.answers and (problem := _misfit(clip, definition)) is not None:
        return [], [Reject(item=clip.clip_id, reason="bad-answers", detail=problem)]
    return definition.make(clip, chosen, context)


def _misfit(clip: Clip, task: Task[Any]) -> str | None:
    """Describe why the ``answers`` of a clip for the task cannot be read; None if they can."""
    given, kind = (clip.answers or {}).get(task.name, ()), task.answers
    if kind is None:
        read = f"answers.{task.name}: the task reads none"
        return f"{read} (value {given[0]!r:.200}); remove it from the row" if given else None
    for number, fields in enumerate(given):
        try:
            kind.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("answers", task.name, number, *first["loc"])))
            problem = first["msg"].removeprefix("Value error, ")
            known = ", ".join(kind.model_fields)
            return f"{where}: {problem} (value {first['input']!r:.200}); an object has the fields {known}"
    return None


def synthesise(
    clips: Sequence[Clip], task: str, settings: TaskSettings, sampled_frames: SampledFrames, seed: int
) -> Iterator[tuple[Clip, list[Sample], list[Reject]]]:
    """Make the samples of one task from clips in memory, clip by clip in the given order, with the
    rejects."""
    rings = {split: ring_of([clip for clip in clips if clip.split == split]) for split in SPLITS}
    for clip in clips:
        yield clip, *samples_of(clip, task, settings, Context(sampled_frames, seed, rings[clip.split]))
