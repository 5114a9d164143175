"""Scores of token configurations as Markdown, put between two marks of a page that people write otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.cards import chance
from vision.files import whole_file

TITLES = {"both": "Symbol and color right", "symbol": "Symbol right", "color": "Color right"}


def tables(report: Mapping[str, Any]) -> str:
    """What is right of each k, by token configuration: shares of cards, in one table for each thing that is scored."""
    by_name = report["tokens"]
    first = next(iter(by_name.values()))["k"]
    lines = []
    for part, title in TITLES.items():
        lines += ["", f"{title}, by k:", "", f"| tokens | {' | '.join(first)} |", "|---" * (len(first) + 1) + "|"]
        rows = {name: [its[part]["accuracy"] for its in one["k"].values()] for name, one in by_name.items()}
        others = [[its[part]["shuffled"] for its in one["k"].values()] for one in by_name.values()]
        rows["images shuffled, the most of any"] = [max(column) for column in zip(*others, strict=True)]
        rows["chance"] = [chance(its[part]) for its in first.values()]
        lines += [f"| {name} | {' | '.join(f'{share:.2f}' for share in row)} |" for name, row in rows.items()]
    spent = [f"{what} s" for what in next(iter(by_name.values()))["seconds"]]
    lines += [
        "",
        "What each cost:",
        "",
        f"| tokens | parameters | {' | '.join(spent)} |",
        "|---" * (len(spent) + 2) + "|",
    ]
    lines += [
        f"| {name} | {one['parameters']:,} | {' | '.join(f'{seconds:.0f}' for seconds in one['seconds'].values())} |"
        for name, one in by_name.items()
    ]
    return "\n".join(lines[1:])


def put(page: Path, section: str, text: str) -> None:
    """Replaces what stands between the page's marks of a section. ValueError if it has none."""
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{page}: has no place for the tables; mark it with the lines {start} and {end}")
    with whole_file(page) as draft:
        draft.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
