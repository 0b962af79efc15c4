"""The model that is measured, sizes of a step, and videos of noise."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.params import TinyModelParams, load_params

RATE = Fraction(8)


@dataclass(frozen=True)
class Shape:
    """Size of a step: prompts, replies to each, tokens of a reply, frames of a video and their side
    in pixels."""

    prompts: int = 8
    rollouts: int = 8
    tokens: int = 24
    frames: int = 16
    size: int = 64

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts x {self.rollouts} rollouts x {self.tokens} tokens a step, {self.frames} frames of"
            f" {self.size} px"
        )


def tiny_params() -> TinyModelParams:
    """Model of the recipe `tiny`."""
    params = load_params("infra/recipes/tiny.yaml").model
    assert isinstance(params, TinyModelParams)
    return params


def build(params: TinyModelParams) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a model with a random start, and its processor."""
    return build_tiny(params, ["what happens ? the red bar rises then grows"], (), 0)


def video(shape: Shape, number: int) -> Frames:
    pixels = (
        np.random.default_rng(number)
        .integers(0, 256, (shape.frames, 4, 4, 3), np.uint8)
        .repeat(shape.size // 4, 1)
        .repeat(shape.size // 4, 2)
    )
    return Frames(pixels, tuple(range(shape.frames)), shape.frames, RATE)
