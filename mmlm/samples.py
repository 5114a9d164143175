"""One question about images and its right answer: what every data set is read into."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from vision.features import FeatureCache
from vision.images import Source

Image = Source | Callable[[], Source]


@dataclass(frozen=True)
class Sample:
    """What the model is shown, asked and taught."""

    id: str
    """Unique in its data set."""
    images: tuple[Image, ...]
    """The images before the question; a function makes one when it is needed."""
    question: str
    """What the user says."""
    answer: str
    """What the model is taught to say; the only text that is learnt."""
    references: tuple[str, ...] = ()
    """All right answers, to score against."""
    kind: str = ""
    """Group in reports: "yes/no", "shape", ..."""


def opened(image: Image) -> Source:
    """The image, made if it is a function."""
    return image() if callable(image) else image


def identity(image: Image) -> Hashable:
    """What tells an image from others, without opening it: itself, or for arrays and PIL images their place."""
    return image if isinstance(image, Hashable) else id(image)


def encode_images(cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[tuple[str, ...]]:
    """For each sample the keys of its images in the cache; what is not there is encoded, with a progress bar."""
    distinct = {identity(image): image for sample in samples for image in sample.images}
    keys = {name: cache.add(opened(image)) for name, image in tqdm(distinct.items(), desc=say, unit="image")}
    return [tuple(keys[identity(image)] for image in sample.images) for sample in samples]
