"""A data set read once from end to end, by threads, its images opened: what `check` and `prune` begin with."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from mmlm.data.likeness import Likeness, likeness
from mmlm.data.rows import Rows, SampleError
from mmlm.data.sample import Sample
from vision.ahead import ahead
from vision.images import ImageError, Lazy, identity, open_image, opened, pixels_key


@dataclass(frozen=True)
class Seen:
    """What is remembered of an image."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    pixels: str
    """Hash of what it shows."""
    likeness: Likeness
    """To know it again when it was rescaled or recompressed."""


@dataclass(frozen=True)
class Read:
    """A row that was read."""

    number: int
    sample: Sample | None
    """None if it is broken."""
    images: tuple[Seen, ...]
    why: str = ""
    """What is wrong with it, and with which image."""


def walk(rows: Rows, say: str) -> Iterator[Read]:
    """All rows in order, with a progress bar. An image of several rows is opened once, unless two want it at once."""
    known: dict[Hashable, Seen | str] = {}  # a reason for what cannot be opened

    def see(image: Lazy) -> Seen:
        key = identity(image)
        if key not in known:
            known[key] = look_at(image)
        seen = known[key]
        if isinstance(seen, str):
            raise ImageError(seen)
        return seen

    def read(number: int) -> Read:
        try:
            sample: Sample = rows[number]
        except SampleError as error:
            return Read(number, None, (), str(error))
        try:
            return Read(number, sample, tuple(map(see, sample.images)))
        except ImageError as error:
            return Read(number, None, (), rows.blame(number, error))

    return iter(tqdm(ahead(read, range(len(rows)), alone=False), total=len(rows), desc=say, unit="sample"))


def look_at(image: Lazy) -> Seen | str:
    """What is to be remembered of an image, or why it cannot be opened."""
    try:
        picture = open_image(opened(image))
    except ImageError as error:
        return str(error)
    return Seen(picture.size, pixels_key(picture), likeness(picture))


def digest(value: object) -> bytes:
    """A hash of texts and what holds them, to be remembered instead of them."""
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
