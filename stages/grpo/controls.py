"""Controls: replies to a step's prompts with a black or shuffled video. Reward earned there does
not come from the video.

They are sampled with generators of their own, so that they change no rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stages.domain.core.frames import blank, shuffled
from stages.domain.rl.shaping import TemporalContrast, contrast_paid
from stages.lib.inference.generate import Item
from stages.lib.training.mixture import Example

View = Literal["blank", "shuffled"]
VIEWS: tuple[View, ...] = ("blank", "shuffled")

#: Name of the objective that holds the reward for frame order.
CONTRAST = "temporal_contrast"


@dataclass(frozen=True)
class Controls:
    """Settings of the controls of a GRPO row.

    Attributes:
        item: returns the prompt of a sample id with its video changed.
        contrast: the rule of the frame-order reward; None: there is no such reward.
        every: steps between two measurements of the gauges on black and shuffled videos; 0: never.
        seed: seed of the sampling.
        batch_size: number of prompts generated together.
    """

    item: Callable[[str, View], Item]
    contrast: TemporalContrast | None
    every: int
    seed: str
    batch_size: int

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


def changed_item(examples: Mapping[str, Example], seed: str) -> Callable[[str, View], Item]:
    """Return a function that gives the prompt of an example with its video changed. A sample's
    frames are always shuffled the same way."""

    def item(key: str, view: View) -> Item:
        example = examples[key]
        if view == "blank":
            return example.prompt, lambda: blank(example.load())
        return example.prompt, lambda: shuffled(example.load(), f"{seed}/{key}")

    return item


def contrast_of(
    keys: Sequence[str],
    ordered: Sequence[float | None],
    other: Mapping[str, Sequence[float | None]],
    rollouts: int,
    rule: TemporalContrast,
) -> list[float | None]:
    """Frame-order reward of each row, before its weight.

    Args:
        keys: prompt of each row; the ``rollouts`` rows of a prompt are consecutive.
        ordered: score of each row's reply to the unchanged video.
        other: scores of the replies to the shuffled video, by prompt.
    """
    paid: list[float | None] = []
    for start in range(0, len(keys), rollouts):
        paid += contrast_paid(ordered[start : start + rollouts], other[keys[start]], rule)
    return paid
