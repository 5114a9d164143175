"""The scores of a run: of answers to the right images, to those of others, and to none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.intervals import mean_interval
from eval.tasks import References, Task

WAYS = ("true", "shuffled", "blind")
"""How each sample is asked: with its images, with those of another sample, with none."""

Said = Mapping[str, Sequence[str]]
"""Of each way, what is said to each sample."""


@dataclass(frozen=True)
class Scores:
    """What a run's answers are worth."""

    table: dict[str, Any]
    """Of each score: `n`; `value` by way, with `low` and `high` where it is a mean; how much is `gained` by the right
    images over each of the other ways, sample by sample."""
    each: dict[str, dict[str, list[float]]]
    """Of each way and score that is a mean, each sample's own."""
    kinds: dict[str, Any]
    """The task's main score of each kind of samples, if there are several."""


def score(task: Task, said: Said, references: References, kinds: Sequence[str]) -> Scores:
    """Scores of a run.

    Args:
        references, kinds: of each sample.
    """
    each = {way: {name: metric(said[way], references) for name, metric in task.each.items()} for way in WAYS}
    table: dict[str, Any] = {
        name: {
            "n": len(references),
            **{way: estimate(each[way][name]) for way in WAYS},
            "gained": {way: estimate(differences(each["true"][name], each[way][name])) for way in WAYS[1:]},
        }
        for name in task.each
    }
    whole = {way: task.whole(said[way], references) for way in WAYS}
    table |= {
        name: {"n": len(references), **{way: {"value": whole[way][name]} for way in WAYS}} for name in whole["true"]
    }
    places = {kind: [i for i, its in enumerate(kinds) if its == kind] for kind in sorted(set(kinds))}
    parts = {
        kind: {"n": len(its), **{way: estimate([each[way][task.main][i] for i in its]) for way in WAYS}}
        for kind, its in places.items()
    }
    return Scores(table, each, parts if len(parts) > 1 else {})


def estimate(values: Sequence[float]) -> dict[str, float]:
    """The mean of the samples' scores, and its 95% interval."""
    found = mean_interval(values)
    return {"value": found.score, "low": found.low, "high": found.high}


def differences(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """How much more the samples score on the left, one by one."""
    return [one - other for one, other in zip(left, right, strict=True)]


def ungrounded(report: Mapping[str, Any]) -> str:
    """Why the scores of a run do not show that the model looks; "" if they do."""
    main = report["main"]
    its = report["scores"][main]
    for way, words in (("blind", "no image"), ("shuffled", "shuffled images")):
        gained = its["gained"][way]
        if gained["low"] <= 0:
            return (
                f"not grounded: {main} is {its['true']['value']:.3f} with the right images and "
                f"{its[way]['value']:.3f} with {words}: a gain of {gained['value']:+.3f} ({gained['low']:+.3f} to "
                f"{gained['high']:+.3f}), which may be none"
            )
    return ""
