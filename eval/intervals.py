"""Bootstrap intervals (Efron 1979) of scores: how much they would move had other samples been drawn.

Samples are drawn anew, with replacement, as many as there are; an interval lies between the percentiles of the scores
of such draws. Two runs over the same samples are compared on the same draws (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation"), which is much sharper than looking whether their intervals overlap.

A score is told by what it needs of each sample (a row) and by how it follows from the rows' sum: a mean from the
samples' scores, BLEU from counts. CIDEr is the mean of its samples' scores: how rare a word is stays as it is in the
whole corpus, since that is what weighs words, not what is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.captions import References, bleu_counts, bleu_of, caption_scores_each

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], float]

DRAWS = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A score, the ends of its 95 % interval, and of how many samples it is."""

    score: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.score:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def interval(rows: ArrayLike, statistic: Statistic, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of `statistic`, which is given the sum over samples of `rows` [n, k] and makes a score of it.

    The same seed gives the same draws. Raises ValueError where there is no sample.
    """
    table = _table(rows)
    sums = _draw([table], draws, seed)[0]
    return _percentiles(statistic(table.sum(0)), [statistic(row) for row in sums], len(table))


def difference(
    left: ArrayLike, right: ArrayLike, statistic: Statistic, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The interval of how much more `right` scores than `left`: rows [n, k] of two runs, of the same samples in order.

    An interval without 0 says that the runs differ. Raises ValueError where there is no sample or not as many.
    """
    tables = [_table(left), _table(right)]
    if len(tables[0]) != len(tables[1]):
        raise ValueError(f"{len(tables[0])} samples beside {len(tables[1])}; compare runs over the same samples")
    sums = _draw(tables, draws, seed)
    gains = [statistic(after) - statistic(before) for before, after in zip(*sums, strict=True)]
    return _percentiles(statistic(tables[1].sum(0)) - statistic(tables[0].sum(0)), gains, len(tables[0]))


def mean_interval(scores: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of a mean of samples' scores."""
    return interval(scores, _mean(len(scores)), draws=draws, seed=seed)


def mean_difference(left: Sequence[float], right: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of how much more `right` scores in the mean than `left`: scores of the same samples in order."""
    return difference(left, right, _mean(len(left)), draws=draws, seed=seed)


def caption_intervals(
    hypotheses: Sequence[str], references: References, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """The interval of each of `eval.captions.caption_scores`."""
    rows = _caption_rows(hypotheses, references)
    return {name: interval(table, score, draws=draws, seed=seed) for name, (table, score) in rows.items()}


def caption_differences(
    left: Sequence[str], right: Sequence[str], references: References, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """The interval of how much more the captions `right` score than `left`, for each of `caption_scores`."""
    before, after = _caption_rows(left, references), _caption_rows(right, references)
    return {
        name: difference(table, after[name][0], score, draws=draws, seed=seed)
        for name, (table, score) in before.items()
    }


def _caption_rows(hypotheses: Sequence[str], references: References) -> dict[str, tuple[ArrayLike, Statistic]]:
    each, mean = caption_scores_each(hypotheses, references), _mean(len(hypotheses))
    counts = bleu_counts(hypotheses, references)
    bleu = {name: (counts, _bleu(name)) for name in bleu_of(counts[0])}
    return {"cider": (each["cider"], mean), **bleu, "rouge_l": (each["rouge_l"], mean)}


def _bleu(name: str) -> Statistic:
    return lambda sums: bleu_of(sums.tolist())[name]


def _mean(n: int) -> Statistic:
    return lambda sums: float(sums[0]) / n


def _table(rows: ArrayLike) -> Numbers:
    table = np.asarray(rows, dtype=np.float64)
    if not len(table):
        raise ValueError("no scores to draw from; give at least one sample")
    return table.reshape(len(table), -1)


def _draw(tables: list[Numbers], draws: int, seed: int) -> list[list[Numbers]]:
    """The sums of each table's rows over the same draws."""
    random, n = np.random.default_rng(seed), len(tables[0])
    sums: list[list[Numbers]] = [[] for _ in tables]
    for _ in range(draws):
        times = np.bincount(random.integers(n, size=n), minlength=n)
        for its, table in zip(sums, tables, strict=True):
            its.append(times @ table)
    return sums


def _percentiles(score: float, drawn: list[float], n: int) -> Interval:
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(score, float(low), float(high), n)
