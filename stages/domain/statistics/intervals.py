"""Confidence intervals and p-values of means and of paired differences; all of the program's come
from here.

Samples about one recording are correlated, so the *units* are recordings (the sources that splits
keep whole), never samples or clips that are parts of one, and a sample may be about two of them.
Everything is closed form: the same scores give the same bytes, for any seed.

**Means** of bounded scores: a beta interval with an effective number of trials that follows from
the variance between units, reduced for the small number of units behind that estimate (Korn and
Graubard, *Survey Methodology* 24, 1998). For right and wrong answers about one video each it is
Clopper and Pearson's exact interval. The variance is the jackknife's: leave out one unit after the
other. Units that were not drawn may differ from all that were: at most a share u of them can,
otherwise one would have been drawn (u = 1 - (tail) ** (1 / units), the "rule of three"), and the
interval covers every mean that this share could cause. So scores that are all equal have an
interval too.

**Differences** of paired scores: one such interval for the wins and one for the losses, combined
with their correlation (MOVER: Zou and Donner, *Statistics in Medicine* 27, 2008), on the scale of
the largest difference observed. An interval from the variance alone would treat rare wins as
certain.

**p-values** are the larger of two: the level at which that interval touches 0, and the share of all
exchanges of the two sides of whole units (sign flips) that give as large a difference. If the flips
do not rule out chance, the interval is extended to 0: it excludes 0 exactly if p is smaller than 1
- confidence.

**Two units per sample** (MixVidQA): the variances of both count, and nothing is subtracted for the
part that they share. This is conservative, like the pigeonhole bootstrap (Owen, *Annals of Applied
Statistics* 1, 2007). Exchanging sides has no units there; p is then at least 2 ** (1 - units / 2).

Simulated coverage: ``tests/stages/domain/tasks/test_coverage.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Record

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Up to this many units all exchanges of sides are counted (32,768); beyond it the normal
#: distribution approximates them, which has the heavier tail.
EXACT_UNITS = 16
#: Tolerance of equality: scores are means of halves and thirds, so equal ones may differ in the
#: last bit.
EQUAL = 1e-9
#: Smallest p-value reported.
LEAST_P = 1e-15


class Interval(Record):
    mean: float
    low: float
    high: float


class Compared(Record):
    """A paired difference. ``p_value``: two-sided, the probability of a difference at least as far
    from 0 if the true one is 0."""

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def interval(self) -> Interval:
        return Interval(mean=self.mean, low=self.low, high=self.high)


@dataclass(frozen=True)
class Design:
    """Units and stratum of each sample. Strata have equal weight, and so have the samples within a
    stratum.

    Attributes:
        units: int [samples, maximum of units per sample]; -1 pads samples with fewer.
        strata: int [samples], numbered from 0; a task, a source, a seed.
    """

    units: Ints
    strata: Ints

    @classmethod
    def of(cls, units: Sequence[Sequence[str]], strata: Sequence[str] | None = None) -> Design:
        """Build the design from names of units and strata.

        Raises:
            ValueError: no sample, or a sample without a unit.
        """
        if not units:
            raise ValueError("units: empty; a mean needs at least one sample")
        if not all(units):
            raise ValueError("units: a sample has none; name the video that it is about")
        numbers: dict[str, int] = {}
        table = np.full((len(units), max(len(set(names)) for names in units)), -1, dtype=np.int64)
        for row, names in enumerate(units):
            for column, name in enumerate(dict.fromkeys(names)):
                table[row, column] = numbers.setdefault(name, len(numbers))
        stratum_numbers = {name: number for number, name in enumerate(dict.fromkeys(strata or ()))}
        by_sample = [stratum_numbers[name] for name in strata] if strata is not None else [0] * len(units)
        return cls(table, np.array(by_sample, dtype=np.int64))

    @cached_property
    def count(self) -> int:
        """Number of units."""
        return len(np.unique(self.units[self.units >= 0]))

    @cached_property
    def weights(self) -> Floats:
        """Weight of each sample, float [samples]; they add up to 1."""
        sizes = np.bincount(self.strata)
        return np.asarray(1.0 / (len(sizes) * sizes[self.strata]), dtype=np.float64)

    def means(self, column: Floats) -> Floats:
        """Mean of ``column`` [samples] in each stratum, float [strata]."""
        return np.asarray(np.bincount(self.strata, weights=column) / np.bincount(self.strata), dtype=np.float64)

    @cached_property
    def crossed(self) -> bool:
        return bool(self.units.shape[1] > 1)

    @cached_property
    def plain(self) -> bool:
        """True if each sample has a unit of its own and there is one stratum."""
        return bool(not self.crossed and self.count == len(self.units) and self.strata.max() == 0)

    @cached_property
    def shares(self) -> Floats:
        """Share of each stratum that is about each unit: float [units, strata]."""
        return self.totals(self.weights) * (int(self.strata.max()) + 1)

    @cached_property
    def effective(self) -> float:
        """Effective number of units (Kish): this many of equal weight give the same information."""
        weights = self.shares.sum(axis=1)
        return float(weights.sum() ** 2 / (weights**2).sum())

    def totals(self, column: Floats) -> Floats:
        """Sums of ``column`` [samples], float [units, strata]; a sample counts for each of its
        units."""
        strata = int(self.strata.max()) + 1
        sums = np.zeros((int(self.units.max()) + 1) * strata)
        for units in self.units.T:
            present = units >= 0
            cells = units[present] * strata + self.strata[present]
            sums += np.bincount(cells, weights=column[present], minlength=len(sums))
        return sums.reshape(-1, strata)

    def moved(self, values: Floats) -> Floats | None:
        """Change of the mean if each unit were left out, float [units]; None if a stratum has a
        single unit, which leaves it undefined."""
        if bool((self.shares >= 1 - EQUAL).any()):
            return None
        left = self.totals(self.weights * (values - self.means(values)[self.strata]))
        return np.asarray((left / (1 - self.shares)).sum(axis=1), dtype=np.float64)


def mean_interval(values: Floats, design: Design, confidence: float, most: float = 1.0) -> Interval:
    """Compute the mean over strata of ``values`` [samples] with its interval.

    If a stratum has one unit only, the interval is the whole possible range.

    Args:
        most: upper bound of the mean; the lower bound is 0.
    """
    part = _part(values, design, most, exact=bool(np.all((values == 0) | (values == most))))
    low, high = _ends(part, 1 - confidence)
    return Interval(mean=part.mean, low=min(low, part.mean), high=max(high, part.mean))


def compared(differences: Floats, design: Design, confidence: float, most: float = 1.0) -> Compared:
    """Compute the mean over strata of paired ``differences`` [samples], with interval and p-value.

    If a stratum has one unit only, the interval is the whole possible range, and the p-value is 1.

    Args:
        most: the mean lies between ``-most`` and ``most``.
    """
    differences = np.where(np.abs(differences) < EQUAL, 0.0, differences)
    scale = float(np.abs(differences).max()) or most
    exact = bool(np.all((differences == 0) | (np.abs(differences) == scale)))
    won, lost = (_part(np.maximum(side * differences, 0), design, scale, exact) for side in (1, -1))
    mean = won.mean - lost.mean
    if won.moved is None:
        return Compared(mean=mean, low=-most, high=most, p_value=1.0)
    correlation = _correlation(won.moved, lost.moved)

    def ends(alpha: float) -> tuple[float, float]:
        (won_low, won_high), (lost_low, lost_high) = _ends(won, alpha), _ends(lost, alpha)

        def reach(first: float, second: float) -> float:
            return float(np.sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0)))

        return (
            max(-most, mean - reach(won.mean - won_low, lost_high - lost.mean)),
            min(most, mean + reach(won_high - won.mean, lost.mean - lost_low)),
        )

    alpha = 1 - confidence
    low, high = ends(alpha)
    by_exchange = _exchanged(differences, design)
    p_value = max(by_exchange, _touching(ends))
    if p_value > alpha:
        low, high = min(low, 0.0), max(high, 0.0)
    return Compared(mean=mean, low=min(low, mean), high=max(high, mean), p_value=p_value)


def harmonic(first: Floats, second: Floats, design: Design) -> Floats:
    """Linearise the harmonic mean of two means (an F1 of mean recall and mean precision) by sample:
    float [samples].

    The mean of the returned values is that harmonic mean itself, since doubling both means doubles
    it. So it gets an interval like any other mean.
    """
    a, b = float(design.means(first).mean()), float(design.means(second).mean())
    if a + b == 0:
        return np.zeros_like(first)
    return np.asarray(2 * (b**2 * first + a**2 * second) / (a + b) ** 2, dtype=np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons (Holm, *Scandinavian Journal of Statistics* 6,
    1979)."""
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = most
    return adjusted


class _Part(NamedTuple):
    """A mean between 0 and ``most``. ``moved``: see :meth:`Design.moved`; ``trials``: set for an
    exact interval."""

    mean: float
    most: float
    units: float
    moved: Floats | None
    variance: float
    trials: int | None


def _part(values: Floats, design: Design, most: float, exact: bool) -> _Part:
    moved = design.moved(values)
    variance = np.inf if moved is None else (design.count - 1) / design.count * float((moved**2).sum())
    trials = len(values) if exact and design.plain else None
    mean = min(float(design.means(values).mean()), most)
    return _Part(mean, most, design.effective, moved, float(variance), trials)


def _ends(part: _Part, alpha: float) -> tuple[float, float]:
    # Imported here: it takes a tenth of a second, and most importers never compute an interval.
    from scipy import special

    share, tail = part.mean / part.most, alpha / 2
    if part.trials is not None:
        low, high = _beta(round(share * part.trials), part.trials, tail)
        return low * part.most, high * part.most
    if not np.isfinite(part.variance):
        return 0.0, part.most
    unseen = 1 - tail ** (1 / part.units)
    low, high = share * (1 - unseen), share + (1 - share) * unseen
    variance = part.variance / part.most**2
    if variance > EQUAL**2 and 0 < share < 1:
        fewness = special.ndtri(tail) / special.stdtrit(part.units - 1, tail)
        trials = share * (1 - share) / variance * float(fewness) ** 2
        by_beta = _beta(share * trials, trials, tail)
        low, high = min(low, by_beta[0]), max(high, by_beta[1])
    return max(low, 0.0) * part.most, min(high, 1.0) * part.most


def _beta(successes: float, trials: float, tail: float) -> tuple[float, float]:
    """Clopper and Pearson's interval, also for a fractional number of trials."""
    from scipy import special

    low = float(special.betaincinv(successes, trials - successes + 1, tail)) if successes > 0 else 0.0
    high = float(special.betainccinv(successes + 1, trials - successes, tail)) if successes < trials else 1.0
    return low, high


def _correlation(first: Floats | None, second: Floats | None) -> float:
    if first is None or second is None:
        return 0.0
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > EQUAL**2 else 0.0


def _exchanged(differences: Floats, design: Design) -> float:
    """Two-sided share of the exchanges of sides that give a difference at least as far from 0."""
    from scipy import special

    if design.crossed:
        return float(min(1.0, 2.0 ** (1 - design.count / 2)))
    totals = design.totals(design.weights * differences).sum(axis=1)
    totals = totals[np.abs(totals) > EQUAL**2]
    if not len(totals):
        return 1.0
    seen = abs(float(totals.sum()))
    if len(totals) > EXACT_UNITS:
        return float(2 * special.ndtr(-seen / np.sqrt((totals**2).sum())))
    sums = np.zeros(1)
    for total in totals[1:]:
        sums = np.concatenate([sums + total, sums - total])
    # The first unit keeps its side: the other half of the exchanges are mirror images.
    far = np.abs(sums + totals[0]) >= seen - EQUAL * np.abs(totals).sum()
    return float(far.mean())


def _touching(ends: Callable[[float], tuple[float, float]]) -> float:
    """Find the level at which an interval touches 0, by bisection. ``ends`` maps a level to its
    interval, wider for smaller levels."""

    def holds(exponent: float) -> bool:
        low, high = ends(10.0**exponent)
        return low <= 0 <= high

    # Not up to 1 itself, where the quantiles of both distributions are 0.
    least, most = np.log10(LEAST_P), np.log10(0.999)
    if holds(most):
        return 1.0
    if not holds(least):
        return LEAST_P
    for _ in range(48):
        middle = (least + most) / 2
        least, most = (middle, most) if holds(middle) else (least, middle)
    return float(10.0**most)
