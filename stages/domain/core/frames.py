"""Frames of a timeline that a model receives, with their frame numbers and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fit:
    """Resize of all frames of a video to the size that a model's processor gives them anyway, to
    store less.

    Attributes:
        name: identifies the resize; changes whenever the output of ``apply`` could change.
        apply: resizes uint8 [frames, height, width, 3]; the processor's output stays the same.
    """

    name: str
    apply: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Shrink:
    """Resize of single frames to the size that a model's processor gives them anyway.

    Frames are resized one at a time, so the full-size frames of a large video are never in memory
    together.

    Attributes:
        size: maps (number of sampled frames, height, width) to the target (height, width).
        apply: resizes uint8 [height, width, 3] to (height, width); the processor's output stays the
            same.
    """

    size: Callable[[int, int, int], tuple[int, int]]
    apply: Callable[[npt.NDArray[np.uint8], tuple[int, int]], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one timeline.

    Attributes:
        pixels: uint8 RGB, shape [frames, height, width, 3], read-only.
        indices: frame number of each in the timeline.
        total: number of frames in the whole timeline.
        rate: frames per second of the timeline.
        warnings: reasons why the pictures look other than those that models are trained on, each a
            sentence with the file and the remedy.
    """

    pixels: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    total: int
    rate: Fraction
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels: shape {self.pixels.shape}, {self.pixels.dtype}; need uint8 [frames, height, width, 3]"
            )
        if len(self.indices) != len(self.pixels):
            raise ValueError(f"indices: {len(self.indices)} for {len(self.pixels)} frames; pass one per frame")
        self.pixels.setflags(write=False)

    @property
    def times_s(self) -> tuple[Fraction, ...]:
        """Presentation time of each frame in the timeline, in seconds, exact."""
        return tuple(index / self.rate for index in self.indices)


def blank(frames: Frames) -> Frames:
    """Return the same frames, all black: a reward still earned does not come from the video."""
    return replace(frames, pixels=np.zeros_like(frames.pixels))


def shuffled(frames: Frames, seed: str) -> Frames:
    """Return the same pictures in another order, at the same times.

    A single frame stays as it is, and equal pictures may change places unseen.
    """
    order = list(range(len(frames.pixels)))
    while len(order) > 1 and order == sorted(order):
        Random(f"{seed}/{len(order)}").shuffle(order)
        seed += "/again"
    return replace(frames, pixels=frames.pixels[order])
