"""What a model is shown: frames of a timeline, with the numbers and times they have in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fit:
    """How large frames are made as small as a model's processor makes them anyway, so that they can be kept in less room.

    Attributes:
        name: changes whenever what ``apply`` returns could.
        apply: uint8 [frames, height, width, 3] to the same frames in another size; what the processor makes of them stays the same.
    """

    name: str
    apply: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Shrink:
    """How frames are made as small as a model's processor makes them anyway, one after the other: those of a large video are then never
    in memory together.

    Attributes:
        size: how many frames a video is shown with, and their height and width, to the height and width they are made.
        apply: uint8 [height, width, 3] and the height and width to make of it; what the processor makes of the frames stays the same.
    """

    size: Callable[[int, int, int], tuple[int, int]]
    apply: Callable[[npt.NDArray[np.uint8], tuple[int, int]], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one timeline.

    Attributes:
        pixels: uint8 RGB, shape [frames, height, width, 3], read-only.
        indices: frame number of each in the timeline.
        total: how many frames the whole timeline has.
        rate: frames a second of the timeline.
    """

    pixels: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    total: int
    rate: Fraction

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels: shape {self.pixels.shape}, {self.pixels.dtype}; need uint8 [frames, height, width, 3]")
        if len(self.indices) != len(self.pixels):
            raise ValueError(f"indices: {len(self.indices)} for {len(self.pixels)} frames; give one a frame")
        self.pixels.setflags(write=False)

    @property
    def times_s(self) -> tuple[Fraction, ...]:
        """Presentation time of each frame in the timeline, in seconds, exact."""
        return tuple(index / self.rate for index in self.indices)


def blank(frames: Frames) -> Frames:
    """The same, all black: what is still earned is earned without the video."""
    return replace(frames, pixels=np.zeros_like(frames.pixels))


def shuffled(frames: Frames, seed: str) -> Frames:
    """The same pictures at the same times, in another order; a single frame, or two of which are equal, may look as before."""
    order = list(range(len(frames.pixels)))
    while len(order) > 1 and order == sorted(order):
        Random(f"{seed}/{len(order)}").shuffle(order)
        seed += "/again"
    return replace(frames, pixels=frames.pixels[order])
