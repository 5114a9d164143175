"""The report of a run for people: its scores as a table, on the terminal and as HTML, with samples that tell most."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics import OWN
from eval.report import Card, figure, page, section, table
from eval.scores import WAYS, Said, Scores
from eval.settings import PLOT, SHOTS
from mmlm.data import Sample
from vision.files import whole_file

MANY = 12  # cards of a section
TOLD = ("model", "data", "split", "subset", "prompt", "limit", "seed", "max_new_tokens", "batch")
HEAD = ("score", "n", "its images", "shuffled", "no image", "gained over shuffled", "gained over none")
BEST = ("best of", *HEAD[1:], "its images, best by score")


def write_page(
    path: Path, report: Mapping[str, Any], samples: Sequence[Sample], said: Said, scores: Scores, seed: int
) -> None:
    """Writes report.html.

    Args:
        report: what scores.json holds.
        seed: of the samples that are drawn.
    """
    settings, main = report["settings"], scores.each["true"][report["main"]]
    told = [(name, str(settings[name])) for name in TOLD]
    told += [(name, str(settings[name])) for name in SHOTS if settings["shots"]]
    told += [(name, str(settings[name])) for name in told_of(settings)]
    told += [(f"{name} by", how) for name, how in report["metrics"].items() if how != OWN]
    told += [("all other scores by", OWN), ("samples left out", str(len(report["broken"])))]
    told += [(name, str(settings[name])) for name in ("weights", "device", "dtype")] + list(report["versions"].items())
    body = table(rows_of(report["scores"]), HEAD)
    if best := report.get("best_of"):
        body += table(best_rows(best, report["main"]), BEST) + figure(path.with_name(PLOT))
    if report["kinds"]:
        by_kind = {kind: its[report["main"]] for kind, its in report["kinds"].items()}
        body += table(rows_of(by_kind), (report["main"], *HEAD[1:]))
    ranked = sorted(range(len(samples)), key=lambda row: (-main[row], row))
    top, worst = ranked[:MANY], ranked[MANY:][: -MANY - 1 : -1]
    others = sorted(ranked[MANY:-MANY])
    random.Random(seed).shuffle(others)
    for title, rows in (("Best", top), ("Worst", worst), ("At random, of the others", others[:MANY])):
        if rows:
            body += section(title, [card(samples[row], row, said, scores) for row in rows])
    body += table(told)
    about = f"{report['n']:,} samples. In parentheses: 95% intervals."
    with whole_file(path) as draft:
        draft.write_text(page(f"{report['task']}: {settings['model']} on {settings['data']}", about, body), "utf-8")


def told_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that say how answers come about, if not greedily."""
    if settings["rank"]:
        return ("rank", "choices")
    return ("best_of", "verifier", "temperature", "top_p") if settings["best_of"] > 1 else ()


def card(sample: Sample, row: int, said: Said, scores: Scores) -> Card:
    """A sample with what was said to it, in each way it was asked."""
    marks = [f"{name} {its[row]:.3g}" for name, its in scores.each["true"].items()]
    more = (("images shuffled", said["shuffled"][row]), ("no image", said["blind"][row]), ("scores", ", ".join(marks)))
    return Card(sample, said["true"][row], None, more)


def rows_of(scores: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a table of scores, one row each."""
    return [
        (
            name or "(none)",
            f"{its['n']:,}",
            *(cell(its[way]) for way in WAYS),
            *(cell(one, "+") for one in its["gained"].values()),
        )
        for name, its in scores.items()
    ]


def best_rows(best: Mapping[str, Any], main: str) -> list[tuple[str, ...]]:
    """The cells of a table of the main score of the best of so many answers, with what the best by that would score."""
    rows = rows_of({f"{main}, {k}": its for k, its in best.items()})
    return [(*row, cell(its["oracle"]["true"])) for row, its in zip(rows, best.values(), strict=True)]


def cell(its: Mapping[str, float], sign: str = "") -> str:
    """A score with its interval."""
    return f"{its['value']:{sign}.3f} ({its['low']:{sign}.3f} to {its['high']:{sign}.3f})"


def summary(report: Mapping[str, Any]) -> str:
    """The scores for the terminal."""
    said = aligned([HEAD[:5], *(row[:5] for row in rows_of(report["scores"]))])
    if best := report.get("best_of"):
        said += f"\n\n{aligned([(*row[:5], row[-1]) for row in (BEST, *best_rows(best, report['main']))])}"
    return said


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
