"""Coverage of intervals in simulation: nominal 95% intervals contain the truth in at least 93%, and
p is below .05 in at most 5% without a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import ndtr

from stages.domain.statistics.intervals import Design, Floats, compared, mean_interval

Rng = np.random.Generator


class World(NamedTuple):
    """``drawn``: scores of a number of clips, and the clips of each; ``truth``: the population
    mean."""

    name: str
    drawn: Callable[[int, Rng], tuple[Floats, list[tuple[str, ...]]]]
    truth: float


def independent(name: str, draw: Callable[[int, Rng], Floats], truth: float) -> World:
    return World(name, lambda clips, rng: (draw(clips, rng), [(str(n),) for n in range(clips)]), truth)


def clustered(
    name: str, of_clip: Callable[[int, Rng], Floats], of_sample: Callable[[Floats, Rng], Floats], truth: float
) -> World:
    """One to five samples per clip, correlated by the value of ``of_clip``."""

    def drawn(clips: int, rng: Rng) -> tuple[Floats, list[tuple[str, ...]]]:
        place = np.repeat(np.arange(clips), rng.integers(1, 6, size=clips))
        return of_sample(of_clip(clips, rng)[place], rng), [(str(n),) for n in place]

    return World(name, drawn, truth)


def crossed(name: str, score: Callable[[Floats], Floats], partner: float, truth: float, per_clip: int = 3) -> World:
    """Samples about two clips, as MixVidQA's are; ``partner``: share of the variance between
    samples that comes from the second."""

    def drawn(clips: int, rng: Rng) -> tuple[Floats, list[tuple[str, ...]]]:
        own = np.repeat(np.arange(clips), min(per_clip, clips - 1))
        other = np.concatenate([rng.permutation(np.delete(np.arange(clips), n))[:per_clip] for n in range(clips)])
        asked, beside, noise = rng.normal(size=clips), rng.normal(size=clips), rng.normal(size=len(own))
        ability = np.sqrt(1 - partner) * asked[own] + np.sqrt(partner) * beside[other] + 0.3 * noise
        return score(ability), [(f"{a}", f"{b}") for a, b in zip(own, other, strict=True)]

    return World(name, drawn, truth)


def in_parts(name: str, score: Callable[[Floats], Floats], truth: float, unit: str) -> World:
    """Four samples per recording, one about each of its parts, which are alike; ``unit``: the
    ``recording`` or the ``clip``."""

    def drawn(recordings: int, rng: Rng) -> tuple[Floats, list[tuple[str, ...]]]:
        place = np.repeat(np.arange(recordings), 4)
        ability = np.sqrt(0.9) * rng.normal(size=recordings)[place] + np.sqrt(0.1) * rng.normal(size=len(place))
        return score(ability), [(f"{n}" if unit == "recording" else f"{n}@{i}",) for i, n in enumerate(place)]

    return World(f"{name} as units: {unit}", drawn, truth)


def chance(share: float) -> Callable[[int, Rng], Floats]:
    return lambda clips, rng: (rng.random(clips) < share).astype(np.float64)


def of(values: list[float], shares: list[float]) -> tuple[Callable[[int, Rng], Floats], float]:
    return (lambda clips, rng: rng.choice(values, clips, p=shares)), float(np.dot(values, shares))


def right_of(ability: Floats) -> Floats:
    return (ability > -0.8).astype(np.float64)


SPREAD = np.sqrt(1.09)
MEANS = [
    *(independent(f"right in {share:.1%}", chance(share), share) for share in (0.5, 0.8, 0.9, 0.95, 0.965, 0.985)),
    independent("any share", lambda clips, rng: rng.random(clips), 0.5),
    independent("shares near 1", lambda clips, rng: rng.beta(8, 1, clips), 8 / 9),
    independent("shares at both ends", lambda clips, rng: rng.beta(0.3, 0.1, clips), 0.75),
    independent("thirds", *of([0.0, 1 / 3, 2 / 3, 1.0], [0.1, 0.2, 0.3, 0.4])),
    independent("nearly always whole", *of([1.0, 0.5, 0.0], [0.9, 0.07, 0.03])),
    clustered(
        "right, clips differ", lambda n, rng: rng.beta(2, 0.5, n), lambda p, rng: (rng.random(len(p)) < p) * 1.0, 0.8
    ),
    clustered("right, clips decide", lambda n, rng: chance(0.9)(n, rng), lambda p, _: p, 0.9),
    clustered(
        "graded, clips differ",
        lambda n, rng: rng.beta(2, 1, n),
        lambda p, rng: 0.8 * p + 0.2 * rng.random(len(p)),
        0.8 * 2 / 3 + 0.1,
    ),
    *(
        crossed(f"right, two clips, {share:.0%}", right_of, share, float(ndtr(0.8 / SPREAD)))
        for share in (0.0, 0.5, 1.0)
    ),
    *(crossed(f"graded, two clips, {share:.0%}", lambda x: ndtr(x / SPREAD), share, 0.5) for share in (0.5, 1.0)),
]
DIFFERENCES = [
    *(
        independent(f"won {won:.0%}, lost {lost:.0%}", *of([1.0, -1.0, 0.0], [won, lost, 1 - won - lost]))
        for won, lost in ((0.03, 0.0), (0.1, 0.1), (0.2, 0.05), (0.3, 0.3), (0.9, 0.0), (0.02, 0.02), (0.5, 0.1))
    ),
    independent("graded, no difference", lambda clips, rng: rng.random(clips) - rng.random(clips), 0.0),
    independent("graded", lambda clips, rng: rng.beta(8, 2, clips) - rng.beta(7, 3, clips), 0.1),
    independent("a few gain", lambda clips, rng: np.where(rng.random(clips) < 0.1, rng.random(clips), 0.0), 0.05),
    clustered(
        "right, clips differ",
        lambda n, rng: rng.beta(2, 1, n),
        lambda p, rng: (rng.random(len(p)) < p) * 1.0 - (rng.random(len(p)) < p) * 1.0,
        0.0,
    ),
    *(
        crossed(f"two clips, {share:.0%}", lambda x: np.where(np.abs(x) > 0.8, np.sign(x), 0.0), share, 0.0)
        for share in (0.0, 0.5, 1.0)
    ),
]


def covered(world: World, clips: int, repeats: int, paired: bool) -> tuple[float, float]:
    """Shares of intervals that contain the truth, and of p below .05."""
    holds = small = 0
    for number in range(repeats):
        values, units = world.drawn(clips, np.random.default_rng([clips, number]))
        design = Design.of(units)
        if paired:
            found = compared(values, design, 0.95)
            small += found.p_value < 0.05
        else:
            found = mean_interval(values, design, 0.95)  # type: ignore[assignment]
        holds += found.low - 1e-9 <= world.truth <= found.high + 1e-9
    return holds / repeats, small / repeats


def check(world: World, clips: int, repeats: int, paired: bool) -> None:
    share, small = covered(world, clips, repeats, paired)
    # Three standard errors of the simulation itself.
    room = 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert share >= 0.93 - min(room, 0.06), f"{world.name}, {clips} clips: {share:.3f}"
    if paired and world.truth == 0:
        assert small <= 0.05 + room, f"{world.name}, {clips} clips: p < .05 in {small:.3f} without a difference"


@pytest.mark.parametrize("world", [MEANS[2], MEANS[9], MEANS[11], MEANS[15]], ids=lambda world: world.name)
def test_means_are_covered(world: World) -> None:
    for clips in (8, 20):
        check(world, clips, 150, paired=False)


@pytest.mark.parametrize(
    "world", [DIFFERENCES[0], DIFFERENCES[3], DIFFERENCES[8], DIFFERENCES[12]], ids=lambda world: world.name
)
def test_differences_are_covered(world: World) -> None:
    for clips in (8, 20):
        check(world, clips, 100, paired=True)


@pytest.mark.parametrize("paired", [False, True])
def test_parts_of_a_recording_are_no_units(paired: bool) -> None:
    def score(ability: Floats) -> Floats:
        return np.sign(ability) if paired else (ability > -0.8) * 1.0

    truth = 0.0 if paired else float(ndtr(0.8))
    check(in_parts("parts", score, truth, "recording"), 20, 150, paired)
    share, small = covered(in_parts("parts", score, truth, "clip"), 20, 150, paired)
    assert share < 0.85, "intervals over parts are too narrow"
    assert not paired or small > 0.15, "and chance looks like a difference"


@pytest.mark.slow
@pytest.mark.parametrize("clips", [3, 5, 8, 20, 40, 100])
@pytest.mark.parametrize("world", MEANS, ids=lambda world: world.name)
def test_means_are_covered_everywhere(world: World, clips: int) -> None:
    check(world, clips, 2000, paired=False)


@pytest.mark.slow
@pytest.mark.parametrize("clips", [4, 8, 20, 40, 100])
@pytest.mark.parametrize("world", DIFFERENCES, ids=lambda world: world.name)
def test_differences_are_covered_everywhere(world: World, clips: int) -> None:
    check(world, clips, 1500, paired=True)
