"""The report a person reads: one HTML file, images and all."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlm.samples import Sample
from vision.images import Source, open_image, opened

THUMBNAIL = 320

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
td, th { padding: .3rem .9rem; border-bottom: 1px solid #d8dee4; }
th { text-align: left; font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #d8dee4; border-radius: 8px; overflow: hidden; background: #fff; }
figure img { width: 100%; height: 12rem; object-fit: contain; background: #f3f4f6; display: block; }
figcaption { padding: .6rem .8rem; } .ask { color: #59636e; } .right { color: #116329; } .wrong { color: #a40e26; }
.more { font-size: 13px; }
"""


@dataclass(frozen=True)
class Card:
    """One sample and what the model said."""

    sample: Sample
    said: str
    right: bool | None
    """None where an answer is neither right nor wrong."""
    more: tuple[tuple[str, str], ...] = ()
    """What else is to be told, as (name, value)."""


def write_report(path: Path, title: str, about: str, rows: Sequence[tuple[str, str]], cards: Sequence[Card]) -> None:
    """Writes the HTML file: a title, a line about the run, a table of (name, value), and the cards in their order."""
    body = table(rows) + section("Held-out images, as they come", cards)
    path.write_text(page(title, about, body), encoding="utf-8")


def page(title: str, about: str, body: str) -> str:
    """A whole HTML file; `body` is HTML, the others are words."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{body}</html>\n"
    )


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of cells, of which the first names the row, as HTML."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td class=n>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{lines}</table>"


def section(title: str, cards: Sequence[Card]) -> str:
    """Cards under a heading, as HTML."""
    return f"<h2>{html.escape(title)}</h2><div class=cards>{''.join(map(_card, cards))}</div>"


def figure(path: Path) -> str:
    """A PNG file, as HTML."""
    return f'<p><img src="{address(path.read_bytes())}" alt="">'


def _card(card: Card) -> str:
    sample = card.sample
    references = " · ".join(sample.references[:3] or (sample.answer,))
    pictures = "".join(f'<img src="{thumbnail(image)}" alt="">' for image in map(opened, sample.images))
    shade = "" if card.right is None else f" class={'right' if card.right else 'wrong'}"
    more = "".join(f"<div class=more>{html.escape(name)}: {html.escape(value)}</div>" for name, value in card.more)
    return (
        f"<figure>{pictures}<figcaption><div class=ask>{html.escape(sample.question)}</div>"
        f"<div{shade}><b>{html.escape(card.said) or '(nothing)'}</b></div>"
        f"<div>{html.escape(references)}</div>{more}</figcaption></figure>"
    )


def thumbnail(image: Source) -> str:
    """An image as a data address, at most 320 pixels wide and high."""
    picture = open_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return address(buffer.getvalue())


def address(png: bytes) -> str:
    """A PNG as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
