"""Pictures of scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.cards import FULL, chance
from mmlm.zoo import EXTRA
from vision.files import whole_file

GPT_4O = {5: 25 / 25, 7: 38 / 49, 13: 1 / len(FULL)}
"""Share of cards that GPT-4o named rightly, by k: Looney 2024. Of 13 x 13 it is told that this was by chance."""

NAMES = {"true": "its images", "shuffled": "images shuffled", "blind": "no image"}


def check_matplotlib() -> None:
    """ImportError, with the mend, if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"matplotlib {EXTRA}") from error
    matplotlib.use("Agg")


def plot_zener(curves: Mapping[str, Mapping[str, Any]], picture: Path, part: str = "both") -> None:
    """Accuracy by k as a PNG, with the chance line and what GPT-4o was found to reach.

    Args:
        curves: by name, what `score` gives by k.
        part: what is to be right of a card: "both", "symbol" or "color".
    """
    check_matplotlib()
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    for number, (name, by_k) in enumerate(curves.items()):
        ks = [int(k) for k in by_k]
        scores = [its[part] for its in by_k.values()]
        color = f"C{number}"
        axes.plot(ks, [its["accuracy"] for its in scores], "o-", color=color, markersize=3.5, label=name)
        axes.fill_between(
            ks, [its["low"] for its in scores], [its["high"] for its in scores], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(ks, [its["shuffled"] for its in scores], ":", color=color, linewidth=1)
    axes.plot(
        ks, [chance(its) for its in scores], "--", color="0.4", linewidth=1, label="chance (dotted: images shuffled)"
    )
    if part == "both":
        axes.plot(list(GPT_4O), list(GPT_4O.values()), "k*", markersize=10, label="GPT-4o (Looney 2024)")
    axes.set(xlabel="k (k x k cards)", ylabel="cards right", ylim=(-0.02, 1.02), xlim=(0.5, 13.5))
    axes.set_xticks(range(1, 14))
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def plot_best(best: Mapping[str, Mapping[str, Any]], score: str, picture: Path) -> None:
    """A score against the number of answers that were drawn as a PNG, with its interval, and with the oracle's.

    Args:
        best: by that number, what scores.json tells of it as `best_of`.
    """
    check_matplotlib()
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    ns = [int(n) for n in best]
    for number, (way, name) in enumerate(NAMES.items()):
        its, color = [of_n[way] for of_n in best.values()], f"C{number}"
        axes.plot(ns, [one["value"] for one in its], "o-", color=color, markersize=3.5, label=name)
        axes.fill_between(
            ns, [one["low"] for one in its], [one["high"] for one in its], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(ns, [of_n["oracle"][way]["value"] for of_n in best.values()], ":", color=color, linewidth=1)
    axes.plot([], [], ":", color="0.4", linewidth=1, label="the best by score")
    axes.set(xlabel="answers drawn, of which the verifier takes one", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    with whole_file(picture) as draft:
        figure.savefig(draft, format="png", dpi=110)
    pyplot.close(figure)
