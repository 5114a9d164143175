"""Reads data once from end to end and tells what is in it, before a GPU is rented."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmlm.data.likeness import Alike
from mmlm.data.measure import Measure
from mmlm.data.rows import Rows
from mmlm.data.walk import Seen, digest, walk
from vision.tiles import plan_tiles

QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
SHOWN = 5  # of what is wrong, for people

Report = dict[str, Any]


def check(data: Mapping[str, Rows], measure: Measure, near: int | None = None) -> Report:
    """What is in data sets, and which images are in two of them: what `mmlm data check --json` writes.

    Args:
        data: by name.
        measure: of lengths.
        near: also tell images of two data sets that look alike, by so many bits of 64 as `Alike` has it; None: not.
    """
    sets, images = {}, {}
    for name, rows in data.items():
        sets[name], images[name] = survey(rows, measure, name)
    leaks = [{"data": [one, other], **leaked(images[one], images[other], near)} for one, other in combinations(data, 2)]
    return {"data": sets, "leaks": leaks, "broken": sum(len(its["broken"]) for its in sets.values())}


def survey(rows: Rows, measure: Measure, say: str) -> tuple[Report, dict[str, tuple[int, Seen]]]:
    """What is in one data set; and of each of its images, by the hash of its pixels, the first row that shows it."""
    broken: list[Report] = []
    kinds, ids, roles, tiles = Counter[str](), Counter[str](), Counter[str](), Counter[int]()
    first: dict[bytes, int] = {}  # row with these images and turns
    twice: list[tuple[int, int]] = []
    images: dict[str, tuple[int, Seen]] = {}
    lengths: dict[str, list[int]] = {name: [] for name in ("learnt", "other", "images", "embeddings", "turns")}
    for row in walk(rows, say):
        sample, why = row.sample, row.why
        try:
            learnt, other = measure(sample) if sample else (0, 0)
        except ValueError as error:
            sample, why = None, rows.blame(row.number, error)
        if sample is None:
            broken.append({"row": row.number, "why": why})
            continue
        key = digest((tuple(seen.pixels for seen in row.images), sample.turns))
        if (known := first.setdefault(key, row.number)) != row.number:
            twice.append((row.number, known))
        plans = [plan_tiles(*seen.size, measure.detail) for seen in row.images]
        for seen in row.images:
            images.setdefault(seen.pixels, (row.number, seen))
        tiles.update(len(plan.boxes) for plan in plans)
        kinds[sample.kind] += 1
        ids[sample.id] += 1
        roles.update(turn.role for turn in sample.turns)
        counts = (learnt, other, len(row.images), sum(plan.embeddings for plan in plans), len(sample.turns))
        for name, count in zip(lengths, counts, strict=True):
            lengths[name].append(count)
    sizes = [seen.size for _, seen in images.values()]
    report = {
        "format": rows.format,
        "rows": len(rows),
        "samples": len(rows) - len(broken),
        "broken": broken,
        "kinds": dict(sorted(kinds.items())),
        "roles": dict(sorted(roles.items())),
        "repeated ids": sum(count - 1 for count in ids.values()),
        "duplicates": [{"row": row, "of": known} for row, known in twice],
        "distinct images": len(images),
        "tiles": {str(count): number for count, number in sorted(tiles.items())},
        "unit": measure.unit,
        **{name: spread(counts) for name, counts in lengths.items()},
        "width": spread([width for width, _ in sizes]),
        "height": spread([height for _, height in sizes]),
    }
    return report, images


def spread(counts: Sequence[int]) -> Report:
    """Sum and quantiles of numbers; of none the sum alone."""
    if not counts:
        return {"sum": 0}
    values = np.quantile(counts, list(QUANTILES.values()), method="inverted_cdf").tolist()
    return {"sum": int(sum(counts))} | {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}


def leaked(one: Mapping[str, tuple[int, Seen]], other: Mapping[str, tuple[int, Seen]], near: int | None) -> Report:
    """Images that are in both of two data sets, and those that are nearly: pairs of the first rows that show them."""
    same = [(one[pixels][0], other[pixels][0]) for pixels in one if pixels in other]
    report: Report = {"same": same}
    if near is not None:
        alike, known = Alike(near), [row for row, _ in one.values()]
        for place, (_, seen) in enumerate(one.values()):
            alike.add(place, None, [seen.likeness])
        likely = (
            (alike.find(None, [seen.likeness]), row) for pixels, (row, seen) in other.items() if pixels not in one
        )
        report["near"] = [(known[place], row) for place, row in likely if place is not None]
    return report


def table(report: Report, data: Mapping[str, Rows]) -> str:
    """A report for people."""
    lines: list[str] = []
    for name, its in report["data"].items():
        lines.append(f"{name} ({its['format']}): {its['samples']:,} of {its['rows']:,} rows are samples")
        lines += numbers(its) if its["samples"] else []
        if its["repeated ids"]:
            lines.append(f"  samples with the id of another: {its['repeated ids']:,}")
        place = data[name].place
        twice = (f"{place(pair['row'])} is {place(pair['of'])}" for pair in its["duplicates"])
        lines += told("samples that are there twice", len(its["duplicates"]), twice)
        lines += told("broken rows", len(its["broken"]), (row["why"] for row in its["broken"]))
    for leak in report["leaks"]:
        one, other = leak["data"]
        for field, what in (("same", "images"), ("near", "images that are nearly")):
            pairs = (f"{data[one].place(a)} and {data[other].place(b)}" for a, b in leak.get(field, ()))
            lines += told(f"{what} both in {one} and in {other}", len(leak.get(field, ())), pairs)
    return "\n".join(line.rstrip() for line in lines)


def numbers(its: Report) -> list[str]:
    """What there is of everything in a data set that has any."""
    said = ", ".join(f"{count:,} {role}" for role, count in its["roles"].items())
    kinds = ", ".join(f"{count:,} {kind or 'of no kind'}" for kind, count in its["kinds"].items())
    tiles = ", ".join(f"{count:,} of {number}" for number, count in its["tiles"].items())
    lines = [f"  turns            {said}", f"  kinds            {kinds}"]
    lines += [f"  distinct images  {its['distinct images']:,}", f"  tiles            {tiles or 'none'}", ""]
    lines.append(f"  {'':25}{'sum':>14}" + "".join(f"{quantile:>9}" for quantile in QUANTILES))
    names = {"learnt": f"learnt {its['unit']}", "other": f"other {its['unit']}", "images": "images of a sample"}
    names |= {"embeddings": "embeddings of a sample", "turns": "turns of a sample"}
    names |= {"width": "width, in pixels", "height": "height, in pixels"}
    for field, title in names.items():
        values = its[field]
        total = "" if field in ("width", "height") else f"{values['sum']:,}"
        lines.append(f"  {title:25}{total:>14}" + "".join(f"{values.get(one, ''):>9}" for one in QUANTILES))
    return [*lines, ""]


def told(what: str, count: int, each: Iterable[str]) -> list[str]:
    """How many there are of something, and the first of them."""
    first = [one for one, _ in zip(each, range(SHOWN), strict=False)]
    more = [f"    ... and {count - len(first):,} more; --json FILE has all"] if count > len(first) else []
    return [f"  {what}: {count:,}", *(f"    {one}" for one in first), *more] if count else []
