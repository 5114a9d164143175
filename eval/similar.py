"""Which images are similar, by what the model's own eyes see of them, or by CLIP.

N images, W width of an embedding.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from itertools import islice, tee
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from eval.known import Known
from mmlm.data import Sample
from mmlm.decoder import fingerprint
from mmlm.ranks import by_shares
from vision.ahead import ahead
from vision.encoder import Features
from vision.features import key_of
from vision.files import whole_file
from vision.images import ImageError, Lazy, file_bytes, identity, open_image, opened, pixels_key
from vision.pyramid import Pyramid

Array = NDArray[np.float32]
Look = Callable[[Sequence[Lazy]], list[Array | None]]
"""Images -> the embedding [W] of each; None for one that cannot be opened."""

FIRST = 1024  # samples that are put in order at first


class Similar:
    """Samples in the order of their images' likeness to another's, the most similar first, equals as they come.

    Likeness is the cosine of two samples' embeddings; of a sample it is the mean of its images'. Samples whose images
    cannot be opened are in no order.

    Args:
        examples: what is put in order; each has an image.
        centred: take the mean over all examples from each embedding first, where they have much in common.
    """

    def __init__(self, examples: Sequence[Sample], look: Look, centred: bool) -> None:
        self.examples, self.look, self.centred = examples, look, centred
        self.last: tuple[tuple[Hashable, ...], Iterator[int]] | None = None
        """The images that were asked for last, and their order, to be told again: many questions may be about them."""

    @cached_property
    def index(self) -> tuple[Array, Array, list[int], NDArray[np.int64]]:
        """Of those that are in order: the distinct embeddings [N, W], of length 1, and the mean [W] that was taken from
        them; which of the examples they are, and for each its embedding. ValueError if there are none."""
        means = self.means(self.examples)
        places = [place for place, mean in enumerate(means) if mean is not None]
        seen = [mean for mean in means if mean is not None]
        if not seen:
            raise ValueError("no image of the examples can be opened; check where they are, --images")
        # of equal ones one: a product of matrices gives rows that are the same other last bits
        number = {name: i for i, name in enumerate(dict.fromkeys(one.tobytes() for one in seen))}
        distinct = np.stack([np.frombuffer(name, np.float32) for name in number])
        middle: Array = np.mean(seen, 0, dtype=np.float32) if self.centred else np.zeros_like(seen[0])
        return length_1(distinct - middle), middle, places, np.array([number[one.tobytes()] for one in seen])

    def means(self, samples: Sequence[Sample]) -> list[Array | None]:
        """The mean embedding of each sample's images."""
        images = {identity(image): image for sample in samples for image in sample.images}
        found = dict(zip(images, self.look(list(images.values())), strict=True))
        whole = list[Array | None]()
        for sample in samples:
            its = [one for image in sample.images if (one := found[identity(image)]) is not None]
            whole.append(np.mean(its, 0, dtype=np.float32) if its and len(its) == len(sample.images) else None)
        return whole

    def __call__(self, sample: Sample) -> Iterator[int]:
        """Places of the examples. ValueError for a sample whose images cannot be opened, or that has none."""
        images = tuple(map(identity, sample.images))
        kept, order = tee(self.last[1] if self.last and self.last[0] == images else self.order(sample))
        self.last = images, kept
        return order

    def order(self, sample: Sample) -> Iterator[int]:
        """The same, computed anew."""
        embeddings, middle, places, rows = self.index
        (mean,) = self.means([sample])
        if mean is None:
            raise ValueError(f"sample {sample.id!r}: no image of it to look for similar ones; take shots_by='random'")
        return (places[one] for one in from_the_most((embeddings @ length_1(mean - middle))[rows]))


def length_1(vectors: Array) -> Array:
    """Vectors [..., W] of length 1; one that is 0 stays so."""
    sizes: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / sizes.clip(np.finfo(np.float32).tiny)


def from_the_most(values: Array, first: int = FIRST) -> Iterator[int]:
    """Places of the values, those of the largest first, of equals the first; as few are sorted as are asked for."""
    if first < len(values):
        least = np.partition(values, -first)[-first]
        top = np.flatnonzero(values >= least)
        yield from top[np.argsort(-values[top], kind="stable")]
        yield from islice(np.argsort(-values, kind="stable"), len(top), None)
    else:
        yield from np.argsort(-values, kind="stable")


def overview(features: Features, pyramid: Pyramid) -> Tensor:
    """What an image shows as a whole [W]: the mean over its overview's coarsest grid."""
    levels = pyramid.overview
    coarsest = min(levels, key=lambda level: level.grid)
    first = sum(level.grid**2 for level in levels[: levels.index(coarsest)])
    map = pyramid.sources.index(coarsest.source)
    slots = features.places[map][:, 0]
    mine = (slots >= first) & (slots < first + coarsest.grid**2)
    return features.values[map][mine].float().mean(0)


class OwnLook:
    """By the model's own features, which are on disk."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def __call__(self, images: Sequence[Lazy]) -> list[Array | None]:
        return [self.vector(self.known.found[identity(image)]) for image in images]

    def vector(self, key: str | ImageError) -> Array | None:
        if isinstance(key, ImageError):
            return None
        cache = self.known.cache
        seen: Array = overview(cache.load(key), cache.encoder.pyramid).numpy()
        return seen


class ClipLook:
    """By the image tower of one of open_clip's models. Each embedding is computed once and kept on disk, a file each.

    Args:
        name: as `Clip` takes it.
        home: a folder for the embeddings of all such models.
    """

    def __init__(self, name: str, home: Path) -> None:
        from mmlm.data.clip import Clip  # here, since open_clip takes a second

        self.clip = Clip(name)
        self.folder = home / fingerprint(self.clip.model)
        self.found: dict[Hashable, str | None] = {}

    def add(self, samples: Sequence[Sample]) -> None:
        """Sees the images of samples, with a progress bar; to be called by every process, before they are asked for."""
        images = {identity(image): image for sample in samples for image in sample.images}
        self.found |= zip(images, by_shares(self.keys, list(images.values())), strict=True)

    def __call__(self, images: Sequence[Lazy]) -> list[Array | None]:
        keys = (self.found[identity(image)] for image in images)
        return [None if key is None else np.load(self.path(key)) for key in keys]

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def keys(self, images: Sequence[Lazy]) -> Iterator[str | None]:
        """What the embedding of each image is named by, once it is on disk; None for one that cannot be opened."""
        quiet = not PartialState().is_main_process
        each = ahead(self.begin, tqdm(images, desc="seeing images", unit="image", disable=quiet), alone=False)
        for key, pixels in each:
            if pixels is not None:
                # alone: an embedding's last bits may depend on the company, which hangs on how many processes there are
                vector = self.clip.see([pixels])[0].cpu().numpy()
                with whole_file(self.path(key)) as draft, draft.open("wb") as file:
                    np.save(file, vector)
            yield key or None

    def begin(self, image: Lazy) -> tuple[str, Tensor | None]:
        """An image's key, "" if it cannot be opened, and its pixels, unless it was seen before."""
        try:
            source = file_bytes(opened(image))
            key = key_of(source, None) or pixels_key(open_image(source))
            return key, None if self.path(key).exists() else self.clip.pixels(open_image(source))
        except ImageError:
            return "", None
