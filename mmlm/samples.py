"""One question about images and its right answer: what every data set is read into."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from mmlm.media import collate
from mmlm.model import MultimodalLM
from mmlm.processor import Marked
from vision.features import FeatureCache
from vision.images import ImageError, Lazy, opened


@dataclass(frozen=True)
class Sample:
    """What the model is shown, asked and taught."""

    id: str
    """Unique in its data set."""
    images: tuple[Lazy, ...]
    """The images before the question; a function, called from one thread or another, makes one when it is needed."""
    question: str
    """What the user says."""
    answer: str
    """What the model is taught to say; the only text that is learnt."""
    references: tuple[str, ...] = ()
    """All right answers, to score against."""
    kind: str = ""
    """Group in reports: "yes/no", "shape", ..."""


def identity(image: Lazy) -> Hashable:
    """What tells an image from others, without opening it: itself, or for arrays and PIL images their place."""
    return image if isinstance(image, Hashable) else id(image)


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
    """The chat that `model.ask` would send, as tokens; `answered`, with the sample's answer and its end after it.

    Args:
        written: what is written in the sample's images, from `read_images`.

    ValueError for a question or an answer that has a mark in its words: it would stand for an image that is not there.
    """
    processor, images = model.processor, len(sample.images)
    for name, words in (("question", sample.question), ("answer", sample.answer)):
        if processor.mark in words:
            raise ValueError(
                f"sample {sample.id!r}: its {name} has {processor.mark} in its words; take it out, images go in images="
            )
    answer = sample.answer + (processor.tokenizer.eos_token or "") if answered else ""
    return processor.read(model.messages(sample.question, images), images, answer, written=written)


def media_of(cache: FeatureCache, rows: Sequence[tuple[str, ...]], index: Tensor) -> dict[str, Any]:
    """The media part of a batch whose rows show the images of these keys; index is `media_index` [R, T]."""
    distinct = {key: number for number, key in enumerate(dict.fromkeys(key for row in rows for key in row))}
    shown = [[distinct[key] for key in row] for row in rows]
    return collate([cache.load(key) for key in distinct], shown, index, cache.encoder.pyramid)
