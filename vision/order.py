"""The order in which the lines of a page are read, from where they stand alone.

The recursive XY-cut (Nagy & Seth 1984, "Hierarchical representation of optically scanned documents", ICPR): a page is
cut where white runs through it, and so are its parts. What is cut across into rows and what lengthwise into columns is
told by the lines: those of a table have partners in a row, those of columns of prose are long or stand between others.

Legend: L lines; a quad is 4 points (x, y) clockwise from where the line's text begins; a box is (left, top, right,
bottom). All in pixels, y downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TALL = 1.5  # times as high as wide: its text runs downwards
WORD = 0.6  # of a line's height: the widest white between words of one piece
PROSE = 6.0  # times as wide as high: about 14 letters, which numbers and labels seldom have

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Piece:
    """Lines, or words, that follow each other without a gap: their numbers and their common box."""

    lines: tuple[int, ...]
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def beside(self, other: "Piece", part: float = 1.0) -> bool:
        """Do the two overlap in height, of which the middle `part` counts?"""
        return abs(self.middle - other.middle) < part * (self.height + other.height) / 2


def reading_rows(quads: Array) -> list[list[int]]:
    """Quads [L, 4, 2] -> the numbers of the lines in rows, as they are read: each line once, a row from its start.

    Pages that are turned by 90, 180 or 270 degrees, or askew, are read as if they stood upright.
    """
    if not len(quads):
        return []
    upright = turned(quads, -direction(quads))
    low, high = upright.min(1), upright.max(1)
    single = [Piece((number,), *low[number].tolist(), *high[number].tolist()) for number in range(len(quads))]
    return [[line for piece in row for line in piece.lines] for row in cut(joined(single))]


def direction(quads: Array) -> float:
    """The angle, in radians clockwise, at which most of the text runs: quarter turns by vote, the rest by median.

    Askew by less than the engine's rounding, which is taken to be a twelfth of a line's height, counts as straight.
    """
    along = (quads[:, 1] - quads[:, 0] + quads[:, 2] - quads[:, 3]) / 2
    down = (quads[:, 3] - quads[:, 0] + quads[:, 2] - quads[:, 1]) / 2
    tall = np.hypot(*down.T) >= TALL * np.hypot(*along.T)
    along, down = np.where(tall[:, None], (down, along), (along, down))
    length = np.hypot(*along.T) + 1e-9
    angle = np.arctan2(along[:, 1], along[:, 0])
    quarters = np.rint(angle / (math.pi / 2)).astype(int)
    quarter = int(np.bincount(quarters % 4, weights=length, minlength=4).argmax())
    same = quarters % 4 == quarter
    askew = (angle - quarters * (math.pi / 2))[same]
    order = np.argsort(askew)
    heaped = np.cumsum(length[same][order])
    skew = float(askew[order][np.searchsorted(heaped, heaped[-1] / 2)])
    rounding = float(np.median(np.hypot(*down.T))) / 12 / (heaped[-1] / len(heaped)) / math.sqrt(len(heaped))
    return quarter * math.pi / 2 + (skew if abs(skew) > rounding else 0.0)


def turned(points: Array, angle: float) -> Array:
    """Points [..., 2] turned about the origin, clockwise as y runs downwards."""
    cos, sin = round(math.cos(angle), 12), round(math.sin(angle), 12)  # quarter turns are exact: lines level stay so
    return points @ np.array([[cos, sin], [-sin, cos]])


def cut(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces -> rows in reading order."""
    bands, rows = across(pieces), list[list[Piece]]()
    least = WORD * float(np.median([piece.height for piece in pieces]))
    while bands:
        count, gutters = shared(bands, least)
        held = [piece for band in bands[:count] for piece in band]
        sides = (
            tuple([piece for piece in held if (piece.left < end) == first] for first in (True, False))
            for end in gutters
        )
        if found := next((two for two in sides if are_columns(*two)), None):
            rows += cut(found[0]) + cut(found[1])
        else:  # nor are parts of the run columns: on with the first band that shares a gutter with those after it
            count += 1 - shared(bands[count::-1], least)[0] if count < len(bands) else 0
            rows += [row for band in bands[:count] for row in grouped(band)]
        del bands[:count]
    return rows


def across(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces cut where white runs from left to right, from the top down; of a line the middle half is black.

    Boxes are drawn wide: those of lines close to each other overlap.
    """
    bands: list[list[Piece]] = []
    end = -math.inf
    for piece in sorted(pieces, key=lambda piece: (piece.middle - piece.height / 4, piece.left, piece.lines)):
        if piece.middle - piece.height / 4 >= end:
            bands.append([])
        bands[-1].append(piece)
        end = max(end, piece.middle + piece.height / 4)
    return bands


def shared(bands: Sequence[Sequence[Piece]], least: float) -> tuple[int, list[float]]:
    """How many bands from the first on share a gutter wider than `least`, and where those end, the widest first."""
    count, free, gutters = 0, [(-math.inf, math.inf)], list[tuple[float, float]]()
    for band in bands:
        for piece in band:
            parts = [((start, min(end, piece.left)), (max(start, piece.right), end)) for start, end in free]
            free = [part for two in parts for part in two if part[0] < part[1]]
        found = [(start, end) for start, end in free if least < end - start < math.inf]
        if count and not found:  # one line alone leaves no gutter, but the next may stand beside it
            break
        count, gutters = count + 1, found
    return count, [end for start, end in sorted(gutters, key=lambda gutter: (gutter[0] - gutter[1], gutter))]


def are_columns(left: Sequence[Piece], right: Sequence[Piece]) -> bool:
    """Are these two sides read one after the other, not row by row?

    They stand beside each other, and either both have long lines, or the lines of one are between those of the other.
    """
    few, many = sorted((left, right), key=len)
    beside = sum(any(one.beside(other) for other in many) for one in few)
    in_rows = sum(any(one.beside(other, 0.5) for other in many) for one in few)
    if 2 * beside < len(few):
        return False
    return 2 * (beside - in_rows) > len(few) or all(
        np.median([(piece.right - piece.left) / (piece.height or 1) for piece in side]) >= PROSE
        for side in (left, right)
    )


def grouped(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces in rows from the top down, each from left to right: in a row are those beside its first, highest one."""
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.middle, piece.left, piece.lines)):
        if not rows or not rows[-1][0].beside(piece, 0.5):
            rows.append([])
        rows[-1].append(piece)
    return [sorted(row, key=lambda piece: (piece.left, piece.lines)) for row in rows]


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces with those joined that follow each other in a row without more white than is between words."""
    whole: list[Piece] = []
    for row in grouped(pieces):
        last: Piece | None = None
        for piece in row:
            if last and piece.left - last.right <= WORD * min(last.height, piece.height):
                last = Piece(
                    last.lines + piece.lines,
                    last.left,
                    min(last.top, piece.top),
                    max(last.right, piece.right),
                    max(last.bottom, piece.bottom),
                )
                whole[-1] = last
            else:
                last = piece
                whole.append(last)
    return whole
