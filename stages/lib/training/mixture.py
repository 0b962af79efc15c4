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
    """Draw ``count`` indices into ``examples``, in training order: the first ones of a
    :class:`Mixture`.

    Raises:
        ValueError: a task with a weight above 0 has no example.
    """
    mixture = Mixture(examples, weights, seed)
    return [mixture.next() for _ in range(count)]


class Mixture:
    """Endless seeded draw from a weighted mixture of tasks.

    Every prefix has the tasks in proportion to their shares, to within one (independent draws would
    sometimes make a step of eight prompts all one task). Within a task all examples are used once
    before any is used again. The shares may be changed between two draws.

    Raises:
        ValueError: a task with a weight above 0 has no example.
    """

    def __init__(self, examples: Sequence[Example], weights: Mapping[TaskName, float], seed: str) -> None:
        self._seed = seed
        self._members: dict[TaskName, list[int]] = {task: [] for task, weight in weights.items() if weight > 0}
        for index, example in enumerate(examples):
            if example.task in self._members:
                self._members[example.task].append(index)
        for task, members in self._members.items():
            if not members:
                raise ValueError(
                    f"tasks.{task}: weight {weights[task]} but no example; synthesise the task, or set its weight to 0"
                )
        total = sum(weights[task] for task in self._members)
        #: Share of each task in the draws to come; they add up to 1.
        self.shares: dict[TaskName, float] = {task: weights[task] / total for task in self._members}
        #: Number of examples of each task drawn so far.
        self.drawn: dict[TaskName, int] = dict.fromkeys(self._members, 0)
        self._credit = {task: Random(f"{seed}/{task}/phase").random() for task in self._members}
        self._decks: dict[TaskName, list[int]] = {task: [] for task in self._members}

    def next(self) -> int:
        """Draw the index of an example."""
        for task in self._members:
            self._credit[task] += self.shares[task]
        task = max(self._members, key=lambda name: self._credit[name])
        self._credit[task] -= 1
        if not self._decks[task]:
            self._decks[task] = self._deck(task, self.drawn[task] // len(self._members[task]))
        self.drawn[task] += 1
        return self._decks[task].pop()

    def _deck(self, task: TaskName, number: int) -> list[int]:
        """All examples of a task, in the order of its ``number``-th use; the last is drawn
        first."""
        deck = list(self._members[task])
        Random(f"{self._seed}/{task}/{number}").shuffle(deck)
        return deck

    def state(self) -> dict[str, dict[TaskName, float]]:
        """Return where the draw stands, without the shares, for :meth:`restore`."""
        return {"credit": dict(self._credit), "drawn": dict(self.drawn)}

    def restore(self, state: Mapping[str, Mapping[TaskName, float]]) -> None:
        """Go on from where :meth:`state` was called, of a mixture of the same examples and seed."""
        for task, members in self._members.items():
            self._credit[task] = float(state["credit"][task])
            self.drawn[task] = int(state["drawn"][task])
            number, used = divmod(self.drawn[task], len(members))
            self._decks[task] = self._deck(task, number)[: len(members) - used] if used else []
