"""Two runs over the same samples side by side: what one gains over the other, sample by sample."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.intervals import Measured
from eval.page import aligned, cell
from eval.report import Card, page, section, table
from eval.scores import tabled
from eval.settings import PREDICTIONS, SCORES
from eval.tasks import TASKS
from mmlm.data import Sample
from mmlm.names import MARK
from vision.files import whole_file

PAGE = "compare.html"
MANY, FEW = 24, 5  # cards of a section; lines of the terminal
HEAD = ("score", "n", "A", "B", "B - A")
DIGESTS = ("samples",)  # settings that say nothing to people; who are the same samples is seen by themselves


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    report: dict[str, Any]
    lines: list[dict[str, Any]]
    """Of predictions.jsonl."""

    def scores(self, name: str) -> list[float]:
        """Each sample's."""
        return [line["scores"][name] for line in self.lines]


def read_run(folder: Path) -> Run:
    """A run that is finished. FileNotFoundError, with the mend, for one that is not."""
    if not (folder / SCORES).is_file():
        raise FileNotFoundError(f"{folder}: no finished run (no {SCORES}); `mmlm eval` makes one, --resume ends one")
    lines = (folder / PREDICTIONS).read_bytes().splitlines()  # those of text end at U+2028, too
    return Run(folder, json.loads((folder / SCORES).read_text(encoding="utf-8")), list(map(json.loads, lines)))


def check_same(left: Run, right: Run) -> None:
    """ValueError, with the first that is not, if the runs are not of the same samples."""
    if left.report["task"] != right.report["task"]:
        raise ValueError(f"{left.folder} is of {left.report['task']}, {right.folder} of {right.report['task']}")
    for number, (one, other) in enumerate(zip(left.lines, right.lines, strict=False), 1):
        for name in ("id", "references"):
            if one[name] != other[name]:
                raise ValueError(
                    f"{name} of sample {number} is {one[name]!r} in {left.folder} and {other[name]!r} in "
                    f"{right.folder}; compare runs of the same data, --limit and --seed"
                )
    if len(left.lines) != len(right.lines):
        raise ValueError(
            f"{len(left.lines)} samples in {left.folder}, {len(right.lines)} in {right.folder}; compare runs of the "
            "same data, --limit and --seed"
        )


@dataclass(frozen=True)
class Versus:
    """What B gains over A."""

    left: Run
    right: Run
    rows: list[tuple[str, ...]]
    """Cells of a table, as `HEAD` says: the difference is paired."""
    apart: list[tuple[str, str, str]]
    """What was asked otherwise: setting, A's, B's."""
    missing: list[str]
    """Scores that only one has, or that do not follow from its predictions.jsonl."""
    better: list[int]
    """Samples that the task's main score gives more in B, those it gives the most first."""
    worse: list[int]

    @property
    def count(self) -> str:
        """How many samples flipped."""
        same = len(self.left.lines) - len(self.better) - len(self.worse)
        return (
            f"{self.left.report['main']}: {len(self.better):,} better in B, {len(self.worse):,} worse, {same:,} alike"
        )


def compare(left: Run, right: Run) -> Versus:
    """Sees what one run gains over another of the same samples. ValueError if they are not."""
    check_same(left, right)
    (first, second), main = (measured(run) for run in (left, right)), left.report["main"]
    shared = [name for name in left.report["scores"] if name in first and name in second]
    of = [tuple(line["images"]) or line["id"] for line in left.lines]
    table = tabled({"B": {name: second[name] for name in shared}, "A": {name: first[name] for name in shared}}, of)
    rows: list[tuple[str, ...]] = [
        (name, f"{its['n']:,}", cell(its["A"]), cell(its["B"]), cell(its["gained"]["A"], "+"))
        for name, its in table.items()
    ]
    gains = [after - before for before, after in zip(left.scores(main), right.scores(main), strict=True)]
    order = sorted(range(len(gains)), key=lambda row: (-abs(gains[row]), row))
    flips = ([row for row in order if gains[row] > 0], [row for row in order if gains[row] < 0])
    missing = sorted({*left.report["scores"], *right.report["scores"]} - set(shared))
    return Versus(left, right, rows, apart(left, right), missing, *flips)


def apart(left: Run, right: Run) -> list[tuple[str, str, str]]:
    """The settings that differ, each with both values."""
    first, second = left.report["settings"], right.report["settings"]
    names = [name for name in {**first, **second} if first.get(name) != second.get(name) and name not in DIGESTS]
    return [(name, str(first.get(name)), str(second.get(name))) for name in names]


def measured(run: Run) -> dict[str, Measured]:
    """A run's scores as they follow from its samples: those of each that it noted, and those of its task."""
    metrics = TASKS[run.report["task"]].metrics
    noted = {name: Measured.mean(run.scores(name)) for name in run.lines[0]["scores"]}
    return metrics([line["said"] for line in run.lines], [line["references"] for line in run.lines]) | noted


def summary(found: Versus) -> str:
    """A comparison for the terminal."""
    said = [aligned([HEAD, *found.rows]), ""]
    if found.missing:
        said += [f"not compared: {', '.join(found.missing)}", ""]
    if found.apart:
        said += [aligned([("setting", "A", "B"), *found.apart]), ""]
    said.append(found.count)
    for title, rows in (("better", found.better), ("worse", found.worse)):
        for row in rows[:FEW]:
            one, other = found.left.lines[row], found.right.lines[row]
            said.append(f"  {title}: {one['id']}: {one['question']!r} A {one['said']!r}, B {other['said']!r}")
    return "\n".join(said)


def write_page(path: Path, found: Versus) -> None:
    """Writes the comparison as HTML, both answers side by side."""
    body = table(found.rows, HEAD)
    if found.missing:
        body += table([("not compared", ", ".join(found.missing))])
    if found.apart:
        body += table(found.apart, ("setting", "A", "B"))
    for title, rows in (("Better in B", found.better), ("Worse in B", found.worse)):
        if rows:
            body += section(f"{title}: {len(rows):,}", cards(found, rows[:MANY]))
    title = f"A: {found.left.folder}, B: {found.right.folder}"
    with whole_file(path) as draft:
        draft.write_text(page(title, f"{found.count}. In parentheses: 95% intervals, paired.", body), "utf-8")


def cards(found: Versus, rows: Sequence[int]) -> list[Card]:
    """Samples as cards, with their images where these are files that are still there."""
    shown = []
    for row in rows:
        one, other = found.left.lines[row], found.right.lines[row]
        images = [image for image in one["images"] if Path(image).is_file()]
        sample = Sample.pair(one["id"], images, one["question"].replace(MARK, ""), "", one["references"])
        both = [name for name in one["scores"] if name in other["scores"]]
        marks = [f"{name} {one['scores'][name]:.3g} / {other['scores'][name]:.3g}" for name in both]
        shown.append(Card(sample, f"A: {one['said']}", None, (("B", other["said"]), ("A / B", ", ".join(marks)))))
    return shown
