"""Sizes of what is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured.

    Attributes:
        prompts, rollouts, tokens: of a step by phases; every reply has so many tokens.
        few, short: prompts and tokens of a step of the trainers, which are run several times.
        frames, side_px: of a video.
        groups: prompts of which the loss is measured both ways.
        window: tokens of decoding that are profiled.
    """

    prompts: int
    rollouts: int
    tokens: int
    few: int
    short: int
    frames: int
    side_px: int
    groups: int
    window: int

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts x {self.rollouts} rollouts x {self.tokens} tokens, {self.frames} frames of"
            f" {self.side_px} px"
        )


#: 1,568 tokens of a prompt are its video's.
FULL = Sizes(8, 8, 128, few=2, short=64, frames=16, side_px=392, groups=2, window=8)
DRY = Sizes(2, 2, 6, few=2, short=4, frames=4, side_px=56, groups=1, window=2)
