"""Training examples, and the seeded order in which a weighted mixture of tasks uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from stages.domain.core.frames import Frames
from stages.domain.core.records import TaskName


@dataclass(frozen=True)
class Example:
    """One prompt about one video.

    Attributes:
        sample_id: unique among the examples of a run.
        task: its task, by which mixture weights and metrics are grouped.
        prompt: the user's text, without chat mark-up.
        reply: the target reply of supervised training; None if only rollouts are needed.
        load: loads the frames; called each time the example is drawn, so it may use a cache.
        outline: gives black frames of the same number, size and times, without reading the video;
            None: only `load` can tell them.
    """

    sample_id: str
    task: TaskName
    prompt: str
    reply: str | None
    load: Callable[[], Frames]
    outline: Callable[[], Frames] | None = None


def draw(examples: Sequence[Example], weights: Mapping[TaskName, float], count: int, seed: str) -> list[int]:
    """Draw ``count`` indices into ``examples``, in training order.

    Every prefix has the tasks in proportion to their weights, to within one (independent draws
    would sometimes make a step of eight prompts all one task). Within a task all examples are used
    once before any is used again.

    Raises:
        ValueError: a task with a weight above 0 has no example.
    """
    of_task: dict[TaskName, list[int]] = {task: [] for task, weight in weights.items() if weight > 0}
    for index, example in enumerate(examples):
        if example.task in of_task:
            of_task[example.task].append(index)
    for task, members in of_task.items():
        if not members:
            raise ValueError(
                f"tasks.{task}: weight {weights[task]} but no example; synthesise the task, or set its weight to 0"
            )

    total = sum(weights[task] for task in of_task)
    credit = {task: Random(f"{seed}/{task}/phase").random() for task in of_task}
    decks: dict[TaskName, list[int]] = {task: [] for task in of_task}
    rounds = dict.fromkeys(of_task, 0)
    order: list[int] = []
    for _ in range(count):
        for task in of_task:
            credit[task] += weights[task] / total
        task = max(of_task, key=lambda name: credit[name])
        credit[task] -= 1
        if not decks[task]:
            decks[task] = list(of_task[task])
            Random(f"{seed}/{task}/{rounds[task]}").shuffle(decks[task])
            rounds[task] += 1
        order.append(decks[task].pop())
    return order
