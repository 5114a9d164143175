"""Images that look alike, found without comparing all with all."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

BITS = 64
FARTHEST = 15  # bits: beyond, bands are of fewer than four bits, and most images that have nothing in common share one
COLORS = 16  # of 255, by which colors may differ; recompression and rescaling change them by less than half of that


@dataclass(frozen=True)
class Likeness:
    """What is remembered of an image to know it again when it was rescaled or recompressed.

    The hash alone would take drawings for one another, and pages: where most is white, few bits are set.
    """

    bits: int
    """64 of them, the difference hash: shrunk to 9 x 8 greys, is each lighter than the one to its right?"""
    colors: bytes
    """8 x 8 of them, RGB, row by row."""


def likeness(image: Image.Image) -> Likeness:
    """Of an RGB image."""
    greys = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    bits = np.packbits(greys[:, :-1] > greys[:, 1:])
    return Likeness(int.from_bytes(bits.tobytes()), image.resize((8, 8), Image.Resampling.BOX).tobytes())


def distance(one: Sequence[Likeness], other: Sequence[Likeness]) -> int:
    """Bits in which as many images differ, those of the pair that differs most; 0 for none."""
    return max(((a.bits ^ b.bits).bit_count() for a, b in zip(one, other, strict=True)), default=0)


def colors_apart(one: Sequence[Likeness], other: Sequence[Likeness]) -> int:
    """The most by which a color of one differs from the other's; 0 for no images."""
    a, b = (np.frombuffer(b"".join(its.colors for its in each), np.uint8).astype(int) for each in (one, other))
    return int(np.abs(a - b).max(initial=0))


class Alike:
    """Rows by what their images look like: the first that looks like another is found.

    Two rows look alike if each image differs from its counterpart by at most `near` bits and 16 of 255 in any color. Of
    hashes that differ in so many bits at most, one band in `near` + 1 is the same: only rows that share one are
    compared (the pigeonhole principle).
    """

    def __init__(self, near: int) -> None:
        if not 0 <= near <= FARTHEST:
            raise ValueError(f"near={near}: takes 0 to {FARTHEST}, how many of {BITS} bits may differ")
        self.near = near
        ends = [BITS * band // (near + 1) for band in range(near + 2)]
        self.bands = [(start, (1 << stop - start) - 1) for start, stop in pairwise(ends)]
        self.rows: dict[Hashable, list[int]] = {}
        self.images: dict[int, tuple[Likeness, ...]] = {}

    def keys(self, among: Hashable, images: Sequence[Likeness]) -> list[Hashable]:
        first = images[0].bits if images else 0
        return [(among, len(images), band, first >> start & mask) for band, (start, mask) in enumerate(self.bands)]

    def find(self, among: Hashable, images: Sequence[Likeness]) -> int | None:
        """The first row that was added, of those with the same `among`, that looks alike."""
        rows = {row for key in self.keys(among, images) for row in self.rows.get(key, ())}
        for row in sorted(rows):
            other = self.images[row]
            if distance(other, images) <= self.near and colors_apart(other, images) <= COLORS:
                return row
        return None

    def add(self, row: int, among: Hashable, images: Sequence[Likeness]) -> None:
        """Rows with the same `among` and as many images are compared with this one; numbers rise."""
        self.images[row] = tuple(images)
        for key in self.keys(among, images):
            self.rows.setdefault(key, []).append(row)
