"""What training is given: examples, and the seeded order in which a weighted mixture of tasks shows them."""

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
        task: the task it belongs to; mixture weights and metrics go by it.
        prompt: the user's text, without any chat mark-up.
        reply: what the model is taught to say; None where only rollouts are wanted.
        load: gives the frames; called each time the example is drawn, so it may be backed by a cache.
    """

    sample_id: str
    task: TaskName
    prompt: str
    reply: str | None
    load: Callable[[], Frames]


def draw(examples: Sequence[Example], weights: Mapping[TaskName, float], count: int, seed: str) -> list[int]:
    """Indices into `examples`, `count` of them, in the order in which training shows them.

    Every prefix holds the tasks in proportion to their weights, to within one (a random draw would make a step of eight
    prompts all one task now and then). Within a task all examples are shown once before any is shown again.

    Raises:
        ValueError: a task with a weight above 0 has no example.
    """
    of_task: dict[TaskName, list[int]] = {task: [] for task, weight in weights.items() if weight > 0}
    for index, example in enumerate(examples):
        if example.task in of_task:
            of_task[example.task].append(index)
    for task, members in of_task.items():
        if not members:
            raise ValueError(f"tasks.{task}: weight {weights[task]} but no example; synthesise the task, or set its weight to 0")

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
