"""Bootstrap intervals (Efron 1979) of scores: how much they would move had other samples been drawn.

Samples are drawn anew, with replacement, as many as there are; an interval lies between the percentiles of the scores
of such draws. Two runs over the same samples are compared on the same draws (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation"), which is much sharper than looking whether their intervals overlap.

A score is told by what it needs of each sample (a row) and by how it follows from the rows' sum: a mean from the
samples' scores, BLEU from counts. CIDEr is the mean of its samples' scores: how rare a word is stays as it is in the
whole corpus, since that is what weighs words, not what is measured.

n samples, k numbers of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], float]
"""The sum [k] of samples' rows -> the score of these samples."""

DRAWS = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Measured:
    """A score of samples, told by what follows from each."""

    rows: Numbers
    """[n, k]"""
    of: Statistic
    each: list[float] | None = None
    """The samples' own scores, of a score that is their mean."""

    @classmethod
    def mean(cls, scores: Sequence[float]) -> "Measured":
        """The mean of samples' scores."""
        n = len(scores)
        return cls(rows_of(scores), lambda sums: float(sums[0]) / n, list(scores))

    @property
    def value(self) -> float:
        return self.of(self.rows.sum(0))


@dataclass(frozen=True)
class Interval:
    """A score, the ends of its 95 % interval, and of how many samples it is."""

    score: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.score:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def interval(its: Measured, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of a score; the same seed gives the same draws."""
    return Interval(its.value, *ends([its.of(sums) for sums in drawn(its.rows, draws, seed)]), len(its.rows))


def difference(left: Measured, right: Measured, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of how much more `right` scores than `left`, of the same samples in order.

    An interval without 0 says that they differ. Raises ValueError if they are not of as many samples.
    """
    if len(left.rows) != len(right.rows):
        raise ValueError(f"{len(left.rows)} samples beside {len(right.rows)}; compare runs over the same samples")
    width = left.rows.shape[1]
    sums = drawn(np.concatenate([left.rows, right.rows], 1), draws, seed)
    gains = [right.of(both[width:]) - left.of(both[:width]) for both in sums]
    return Interval(right.value - left.value, *ends(gains), len(left.rows))


def rows_of(rows: ArrayLike) -> Numbers:
    """Samples' numbers as [n, k]. Raises ValueError where there is no sample."""
    table = np.asarray(rows, dtype=np.float64)
    if not len(table):
        raise ValueError("no scores to draw from; give at least one sample")
    return table.reshape(len(table), -1)


def drawn(rows: Numbers, draws: int = DRAWS, seed: int = 0) -> Numbers:
    """The sum of the rows [n, k] that each draw has: [draws, k]."""
    random, n = np.random.default_rng(seed), len(rows)
    times = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(draws))
    return np.stack([its @ rows for its in times])


def ends(scores: Sequence[float] | Numbers) -> tuple[float, float]:
    """The ends of an interval, from the scores of draws."""
    low, high = np.quantile(scores, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
