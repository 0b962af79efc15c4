"""Frames that carry their own number as a grid of 16 bright and dark blocks, so that a wrong frame
is counted, not assumed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
FRAMES, RATE = 60, Fraction(10)


def draw_numbers(numbers: list[int], size: int = 64) -> Pixels:
    bits = (np.array(numbers)[:, None] >> np.arange(16)) & 1
    grid = bits.reshape(-1, 4, 4).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return (np.where(grid, 230, 25)[..., None] * np.ones(3)).astype(np.uint8)


def read_numbers(pixels: Pixels) -> list[int]:
    count, height, width, _ = pixels.shape
    blocks = pixels.mean(axis=3).reshape(count, 4, height // 4, 4, width // 4).mean(axis=(2, 4)).reshape(count, 16)
    return [int(number) for number in ((blocks > 128) << np.arange(16)).sum(axis=1)]
