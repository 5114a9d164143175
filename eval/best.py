"""What answers that were drawn are worth: the score against n, from the same draws for every n.

The best of k is the mean, over all choices of k of the n draws, of what the verifier's best of those scores: the i-th
best of n is the best of C(n - i, k - 1) of the C(n, k) choices. That is the unbiased estimate of Chen et al. 2021,
arXiv:2107.03374, for any verifier. The best of 1 is the mean of all draws. The oracle's verifier is the score itself.

S samples, n draws of each.
"""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.intervals import Measured, Numbers
from eval.plots import plot_best
from eval.sampled import ranked
from eval.scores import WAYS, Table, shown, tabled
from eval.settings import PLOT
from eval.tasks import Task, right
from eval.together import Answer
from mmlm.data import Sample

ORACLE = "oracle"


def score_best(
    task: Task, answers: Mapping[str, Sequence[Answer]], samples: Sequence[Sample], folder: Path
) -> dict[str, Any]:
    """What scores.json tells of drawn answers, as `best_of`; their plot is written, too. {} if none were drawn.

    Args:
        answers: to each sample, by way.
    """
    if "drawn" not in answers["true"][0]:
        return {}
    found = against_n(task, answers, samples)
    plot_best(found, task.main, folder / PLOT)
    return {"best_of": found}


def against_n(task: Task, answers: Mapping[str, Sequence[Answer]], samples: Sequence[Sample]) -> Table:
    """The task's main score of the best of k by k, "1" to n; of each the `oracle`'s by way, too."""
    references, of = list(map(right, samples)), list(map(shown, samples))
    by_verifier, by_score = dict[str, dict[str, Measured]](), dict[str, dict[str, Measured]]()
    for way in WAYS:
        every = [its["drawn"] for its in answers[way]]
        said = [[text for text, _ in column] for column in zip(*every, strict=True)]
        scores = np.array([task.each(texts, references) for texts in said]).T  # [S, n]
        order = np.array([ranked(its) for its in every])
        by_verifier[way] = measured(best_each(np.take_along_axis(scores, order, 1)))
        by_score[way] = measured(best_each(-np.sort(-scores, 1)))
    oracle, found = tabled(by_score, of), tabled(by_verifier, of)
    return {k: its | {ORACLE: {way: oracle[k][way] for way in WAYS}} for k, its in found.items()}


def measured(best: Numbers) -> dict[str, Measured]:
    """By k, what the best of k of each sample's draws score [S, n]."""
    return {str(k): Measured.mean(column.tolist()) for k, column in enumerate(best.T, 1)}


def best_each(scores: ArrayLike) -> Numbers:
    """Scores [S, n] of draws, in the order that they are taken -> of the best of 1 to n of them [S, n]."""
    table = np.asarray(scores, dtype=np.float64)
    n = table.shape[1]
    shares = [[comb(n - place, k - 1) / comb(n, k) for k in range(1, n + 1)] for place in range(1, n + 1)]
    best: Numbers = table @ np.array(shares)
    return best
