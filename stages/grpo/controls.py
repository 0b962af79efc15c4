"""Replies of the policy in training to its prompts with another video: what it earns there was not earned by looking.

They are drawn by generators of their own, so that asking for them moves no rollout.
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

#: The objective that the contrast pays into.
CONTRAST = "temporal_contrast"


@dataclass(frozen=True)
class Controls:
    """When to ask, and what for.

    Attributes:
        item: the prompt of a sample's key with its video changed.
        contrast: what to pay for needing the order of the frames; None: nothing.
        every: ask with a black and a shuffled video at each step that is a multiple of it, for the gauges; 0: never.
        seed: of the draws.
        batch_size: prompts that are answered at once.
    """

    item: Callable[[str, View], Item]
    contrast: TemporalContrast | None
    every: int
    seed: str
    batch_size: int

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


def changed_item(examples: Mapping[str, Example], seed: str) -> Callable[[str, View], Item]:
    """The prompts of these examples with their videos changed; a sample's frames are shuffled in one way, always."""

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
    """What the rule pays each row, before the weight.

    Args:
        keys, ordered: of each row, its prompt and the share its reply earns; the ``rollouts`` rows of a prompt stand together.
        other: by prompt, what replies to the shuffled video earn.
    """
    paid: list[float | None] = []
    for start in range(0, len(keys), rollouts):
        paid += contrast_paid(ordered[start : start + rollouts], other[keys[start]], rule)
    return paid
