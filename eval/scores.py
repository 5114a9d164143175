"""The scores of a run: of answers to the right images, to those of others, and to none."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.intervals import Measured, Numbers, drawn, ends, together
from eval.metrics import Metric, Metrics
from mmlm.data import Sample
from vision.images import identity

WAYS = ("true", "shuffled", "blind")
"""How each sample is asked: with its images, with those of another sample, with none."""

LEAST = 10  # samples that show anything

Said = Mapping[str, Sequence[str]]
"""Of each way, what is said to each sample."""

Table = dict[str, Any]
"""Of each score: `n`, the score of each way, and how much the first has `gained` over each of the others, on the same
draws of samples; all as `value`, with the ends `low` and `high` of its 95% interval."""


@dataclass(frozen=True)
class Scores:
    """What a run's answers are worth."""

    table: Table
    each: dict[str, dict[str, list[float]]]
    """Of each way and score that is a mean, each sample's own."""
    kinds: dict[str, Table]
    """The task's scores of each kind of samples by itself, if there are several."""


def score(metrics: Metrics, said: Said, samples: Sequence[Sample]) -> Scores:
    """Scores of a run; `said`, to each of the samples."""
    found = {way: measured([metrics.task, *metrics.more], said[way], samples) for way in WAYS}
    each = {way: {name: one.each for name, one in its.items() if one.each is not None} for way, its in found.items()}
    kinds = {}
    for kind in sorted({sample.kind for sample in samples}):
        places = [place for place, sample in enumerate(samples) if sample.kind == kind]
        its = [samples[place] for place in places]
        part = {way: measured([metrics.task], [said[way][place] for place in places], its) for way in WAYS}
        kinds[kind] = tabled(part, list(map(shown, its)))
    return Scores(tabled(found, list(map(shown, samples))), each, kinds if len(kinds) > 1 else {})


def measured(metrics: Sequence[Metric], said: Sequence[str], samples: Sequence[Sample]) -> dict[str, Measured]:
    """All scores of what is said, by name."""
    return {name: one for metric in metrics for name, one in metric(said, samples).items()}


def shown(sample: Sample) -> Hashable:
    """What tells the images of a sample, which others may share; one without any shares nothing."""
    return tuple(map(identity, sample.images)) or sample.id


def tabled(found: Mapping[str, Mapping[str, Measured]], of: Sequence[Hashable]) -> Table:
    """Scores by way and name, beside each other.

    Args:
        of: for each sample, what others share with it, as an image: those are drawn together.
    """
    first, *others = found
    flat = {(way, name): one for way, its in found.items() for name, one in its.items()}
    stops = np.cumsum([one.rows.shape[1] for one in flat.values()])
    rows = together(np.concatenate([one.rows for one in flat.values()], 1), of)
    sums = np.split(drawn(rows), stops[:-1], 1)
    scores = {key: np.array(list(map(one.of, its))) for (key, one), its in zip(flat.items(), sums, strict=True)}
    return {
        name: {
            "n": len(one.rows),
            **{way: noted(found[way][name].value, scores[way, name]) for way in found},
            "gained": {
                way: noted(one.value - found[way][name].value, scores[first, name] - scores[way, name])
                for way in others
            },
        }
        for name, one in found[first].items()
    }


def noted(value: float, draws: Numbers) -> dict[str, float]:
    """A score with its interval, from those of draws."""
    low, high = ends(draws)
    return {"value": value, "low": low, "high": high}


def ungrounded(report: Mapping[str, Any]) -> str:
    """Why the scores of a run do not show that the model looks; "" if they do."""
    main = report["main"]
    its = report["scores"][main]
    if its["n"] < LEAST:
        return f"not grounded: {its['n']} samples are too few to tell; ask {LEAST} or more"
    for way, words in (("blind", "no image"), ("shuffled", "shuffled images")):
        gained = its["gained"][way]
        if gained["low"] <= 0:
            return (
                f"not grounded: {main} is {its['true']['value']:.3f} with the right images and "
                f"{its[way]['value']:.3f} with {words}: a gain of {gained['value']:+.3f} ({gained['low']:+.3f} to "
                f"{gained['high']:+.3f}), which may be none"
            )
    return ""
