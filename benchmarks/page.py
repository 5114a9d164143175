"""docs/performance.md: its text is written by people, its sections by the benchmarks, each by a command of its own."""

from pathlib import Path

from generation import machine

from finetune.page import put

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"


def write(section: str, text: str, page: Path = PAGE) -> None:
    """Puts a text, and below it what it was measured on, between `<!-- section -->` and `<!-- /section -->`.

    ValueError if the page has no such marks.
    """
    put(page, section, f"{text}\n\nOn: {machine()}.")


def table(rows: list[list[str]]) -> str:
    """Rows of cells, of which the first is the head, as Markdown."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])
