"""Zener cards: a seeded picture of a grid of them, the question about it, and what of an answer counts.

The test is that of Looney 2024, "A Picture is Worth 170 Tokens: How Does GPT-4o Encode Images?": grids of k x k
colored symbols, to be named one by one.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

MOST = 13  # cards on a side: columns are named a to m
LETTERS = "abcdefghijklm"
SAMPLING = 3  # pixels drawn for one that is kept, in each direction
SIDE = (0.62, 0.78)  # of a symbol, by its cell's
SHIFT = 0.06  # how far a symbol is from its cell's middle, by the cell's side, at the most
TURN = 8  # degrees, at the most
PEN = 0.2  # width, by half the symbol's side
GROUND = 225  # of 255: the ground's channels are at least this

Card = tuple[str, str]  # color and symbol
Point = tuple[float, float]

COLORS = {
    "red": (214, 34, 40),
    "orange": (247, 148, 20),
    "green": (36, 138, 61),
    "blue": (29, 78, 205),
    "black": (20, 20, 20),
}


def _turning(radii: Sequence[float]) -> list[Point]:
    """A closed line through points at these distances from the middle, the first at the top, at equal angles."""
    angles = [2 * math.pi * n / len(radii) for n in range(len(radii))]
    points = [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]
    return points + points[:2]  # so that the last corner is drawn as the others are


def _wave(middle: float) -> list[Point]:
    steps = [n / 32 for n in range(33)]
    return [(middle + 0.2 * math.sin(4 * math.pi * step), 1.8 * step - 0.9) for step in steps]


SYMBOLS: dict[str, list[list[Point]]] = {
    "circle": [_turning([0.9] * 64)],
    "cross": [[(-0.95, 0), (0.95, 0)], [(0, -0.95), (0, 0.95)]],
    "waves": [_wave(middle) for middle in (-0.6, 0, 0.6)],
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)]],
    "star": [_turning([1, 0.42] * 5)],
}
"""Lines of each symbol, between -1 and 1 in both directions."""

FULL: list[Card] = [(color, symbol) for color in COLORS for symbol in SYMBOLS]

_SYMBOL = "|".join([*SYMBOLS, r"plus", r"wav(?:e|y)(?:\s+lines?)?"])
_CARD = rf"\b({'|'.join(COLORS)})[\s-]+({_SYMBOL})s?\b"
_PLACED = re.compile(rf"\b([a-m])\s?(1[0-3]|[1-9])\W+(?:an?\s+)?{_CARD}")
_BARE = re.compile(_CARD)


@dataclass(frozen=True)
class Cards:
    """k x k cards, each drawn at random from all colors and symbols. Calling it draws the picture.

    Args:
        k: cards on a side, 1 to 13.
        number, seed: tell it from others of the same k.
        size: pixels on a side.
    """

    k: int
    number: int
    seed: int | str = 0
    size: int = 512

    @property
    def cards(self) -> list[Card]:
        """Row by row from the top, each from the left."""
        drawn = random.Random(f"{self.seed} {self.k} {self.number}")
        return [drawn.choice(FULL) for _ in range(self.k**2)]

    def __call__(self) -> Image.Image:
        drawn = random.Random(f"{self.seed} {self.k} {self.number} drawn")
        full = self.size * SAMPLING
        picture = Image.new("RGB", (full, full), tuple(drawn.randint(GROUND, 255) for _ in "RGB"))
        pen, cell = ImageDraw.Draw(picture), full / self.k
        for place, (color, symbol) in enumerate(self.cards):
            row, column = divmod(place, self.k)
            half = drawn.uniform(*SIDE) * cell / 2
            x, y = ((at + 0.5 + drawn.uniform(-SHIFT, SHIFT)) * cell for at in (column, row))
            angle = math.radians(drawn.uniform(-TURN, TURN))
            sin, cos = half * math.sin(angle), half * math.cos(angle)
            for line in SYMBOLS[symbol]:
                turned = [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in line]
                pen.line(turned, COLORS[color], max(1, round(PEN * half)), joint="curve")
        return picture.reduce(SAMPLING)

    @property
    def question(self) -> str:
        """What is asked of the picture. Grids of one size are asked about in the same words."""
        return (
            f"The picture shows {self.k} x {self.k} cards: columns a to {LETTERS[self.k - 1]} from the left, rows 1 to "
            f"{self.k} from the top. Name the color ({_either(COLORS)}) and the symbol ({_either(SYMBOLS)}) of every "
            "card, one line for each row, like this: a1 red star b1 blue waves"
        )

    @property
    def answer(self) -> str:
        """Four tokens for each card, of most tokenizers: column, row, color, symbol."""
        named = [
            f"{LETTERS[place % self.k]}{place // self.k + 1} {color} {symbol}"
            for place, (color, symbol) in enumerate(self.cards)
        ]
        return "\n".join(" ".join(named[start : start + self.k]) for start in range(0, self.k**2, self.k))


def read(text: str, k: int) -> list[Card | None]:
    """What an answer says of each of k x k cards, row by row; None where it says nothing.

    A card is a color and a symbol next to each other, under the name of its place ("b3 red star"). An answer that names
    no places is read by its lines, if as many as there are rows have cards, and otherwise in order. Every card is
    taken at its first word, so that no answer gets more right than chance without a look.
    """
    text = text.lower()
    said: dict[tuple[int, int], Card] = {}
    if placed := _PLACED.findall(text):
        for column, row, color, symbol in placed:
            said.setdefault((int(row) - 1, LETTERS.index(column)), (color, _plain(symbol)))
    else:
        lines = [cards for line in text.splitlines() if (cards := _BARE.findall(line))]
        if len(lines) != k:
            flat = [card for line in lines for card in line]
            lines = [flat[start : start + k] for start in range(0, len(flat), k)]
        for row, line in enumerate(lines):
            for column, (color, symbol) in enumerate(line):
                said[row, column] = (color, _plain(symbol))
    return [said.get(divmod(place, k)) for place in range(k**2)]


def _plain(symbol: str) -> str:
    return "waves" if symbol.startswith("wav") else "cross" if symbol == "plus" else symbol


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def chance(scores: Mapping[str, float]) -> float:
    """The chance line: what a uniform guess gets, or the best constant answer, whichever is more."""
    return max(scores["uniform"], scores["constant"])
