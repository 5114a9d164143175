"""Bootstrap intervals (Efron 1979) of scores: how much they would move had other samples been drawn.

Samples are drawn anew, with replacement, as many as there are; an interval lies between the percentiles of the scores
of such draws. Samples of one image are drawn together: what they have in common would make intervals too narrow (Miller
2024, "Adding Error Bars to Evals", arXiv:2411.00640). Two runs over the same samples are compared on the same draws
(Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"), which is much sharper than looking
whether their intervals overlap.

A score is told by what it needs of each sample (a row) and by how it follows from the rows' sum: a mean from the
samples' scores, BLEU from counts. CIDEr is the mean of its samples' scores: how rare a word is stays as it is in the
whole corpus, since that is what weighs words, not what is measured.

n samples, k numbers of each.
"""

from collections.abc import Callable, Hashable, Sequence
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
        return cls(rows_of([(score, 1) for score in scores]), lambda sums: float(sums[0] / sums[1]), list(scores))

    @property
    def value(self) -> float:
        return self.of(self.rows.sum(0))


def rows_of(rows: ArrayLike) -> Numbers:
    """Samples' numbers as [n, k]. Raises ValueError where there is no sample."""
    table = np.asarray(rows, dtype=np.float64)
    if not len(table):
        raise ValueError("no scores to draw from; give at least one sample")
    return table.reshape(len(table), -1)


def together(rows: Numbers, of: Sequence[Hashable]) -> Numbers:
    """Rows [n, k] summed up by what they are `of`, as samples by their image: [as many as these, k]."""
    places = {one: place for place, one in enumerate(dict.fromkeys(of))}
    sums = np.zeros((len(places), rows.shape[1]))
    np.add.at(sums, [places[one] for one in of], rows)
    return sums


def drawn(rows: Numbers, draws: int = DRAWS, seed: int = 0) -> Numbers:
    """The sum of the rows [n, k] that each draw has: [draws, k]. The same seed gives the same draws."""
    random, n = np.random.default_rng(seed), len(rows)
    times = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(draws))
    return np.stack([its @ rows for its in times])


def ends(scores: Sequence[float] | Numbers) -> tuple[float, float]:
    """The ends of an interval, from the scores of draws."""
    low, high = np.quantile(scores, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
