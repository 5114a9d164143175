"""What is known of a run's images: their features on disk, or why there are none, and what is written in them."""

from collections.abc import Hashable, Iterable, Iterator, Sequence

from accelerate import PartialState
from tqdm import tqdm

from mmlm.data import Sample
from mmlm.model import MultimodalLM
from mmlm.ranks import by_shares
from mmlm.samples import read_images
from vision.features import FeatureCache
from vision.images import ImageError, Lazy, identity

Keys = tuple[str, ...]
"""Of a sample's images, in the feature cache."""


class Known:
    """Images whose features are on disk, and those that cannot be opened. To be used by every process alike."""

    def __init__(self, model: MultimodalLM, cache: FeatureCache) -> None:
        self.model, self.cache = model, cache
        self.found: dict[Hashable, str | ImageError] = {}
        """The key of each image in the cache, or why it has none."""
        self.words: dict[Hashable, str] = {}
        """What is written in an image."""

    def add(self, samples: Iterable[Sample]) -> None:
        """Encodes the images of samples that are not known yet, with a progress bar."""
        images = {identity(image): image for sample in samples for image in sample.images}
        new = {name: image for name, image in images.items() if name not in self.found}
        if new:
            self.found |= zip(new, by_shares(self.added, list(new.values())), strict=True)

    def added(self, images: Sequence[Lazy]) -> Iterator[str | ImageError]:
        quiet = not PartialState().is_main_process
        with tqdm(total=len(images), desc="encoding images", unit="image", disable=quiet) as bar:
            for one in self.cache.add_all(images):
                bar.update()
                yield one

    def read(self, samples: Sequence[Sample]) -> None:
        """Reads what is written in the images of samples, if the model does that, with a progress bar."""
        say = "reading text in images"
        read = by_shares(lambda some: read_images(self.model, self.cache, some, say), samples)
        for sample, words in zip(samples, read, strict=True):
            self.words |= zip(map(identity, sample.images), words, strict=bool(words))

    def error(self, sample: Sample) -> ImageError | None:
        """Why the sample cannot be shown, if that is known."""
        its = (self.found.get(identity(image)) for image in sample.images)
        return next((one for one in its if isinstance(one, ImageError)), None)

    def keys(self, sample: Sample) -> Keys:
        """Of all that is known of the sample's images."""
        its = (self.found.get(identity(image)) for image in sample.images)
        return tuple(one for one in its if isinstance(one, str))

    def written(self, sample: Sample) -> Keys:
        """What was read in the sample's images; () where the model reads none."""
        return tuple(self.words[identity(image)] for image in sample.images if self.words)
