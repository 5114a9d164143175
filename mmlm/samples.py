"""Samples on their way to the model: their images as keys in the feature cache, their turns as tokens."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from mmlm.data.sample import Sample as Sample
from mmlm.marked import Marked
from mmlm.media import collate
from mmlm.model import MultimodalLM
from mmlm.turns import read_turns
from vision.features import FeatureCache
from vision.images import ImageError, identity, opened


def encode_images(cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[tuple[str, ...]]:
    """For each sample the keys of its images in the cache; what is not there is encoded, with a progress bar.

    ImageError, once all others are in the cache, for images that cannot be opened: how many, and the first of them.
    """
    distinct = {identity(image): image for sample in samples for image in sample.images}
    added = tqdm(cache.add_all(distinct.values()), total=len(distinct), desc=say, unit="image")
    keys = dict(zip(distinct, added, strict=True))
    broken = [error for error in keys.values() if isinstance(error, ImageError)]
    if broken:
        raise ImageError(f"{len(broken)} of {len(keys)} images cannot be opened: {broken[0]}") from broken[0]
    return [tuple(cast(str, keys[identity(image)]) for image in sample.images) for sample in samples]


def read_images(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[tuple[str, ...]]:
    """For each sample what is written in its images, kept beside their features; () where the model reads none."""
    reader = model.processor.reader
    if reader is None:
        return [()] * len(samples)
    distinct = {identity(image): image for sample in samples for image in sample.images}
    folder = cache.folder.parent / "ocr"
    found = (model.processor.describe(opened(image), folder) for image in distinct.values())
    written = dict(zip(distinct, tqdm(found, total=len(distinct), desc=say, unit="image"), strict=True))
    return [tuple(written[identity(image)] for image in sample.images) for sample in samples]


def asked(model: MultimodalLM, sample: Sample, answered: bool = False, written: Sequence[str] = ()) -> Marked:
    """The chat that `model.ask` would send, as tokens; `answered`, with the sample's answers, and an end after each.

    Arguments and errors as of `mmlm.turns.read_turns`.
    """
    return read_turns(model.processor, model.config, sample, answered, written)


def media_of(cache: FeatureCache, rows: Sequence[tuple[str, ...]], index: Tensor) -> dict[str, Any]:
    """The media part of a batch whose rows show the images of these keys; index is `media_index` [R, T]."""
    distinct = {key: number for number, key in enumerate(dict.fromkeys(key for row in rows for key in row))}
    shown = [[distinct[key] for key in row] for row in rows]
    return collate([cache.load(key) for key in distinct], shown, index, cache.encoder.pyramid)
