"""Samples as tokens and features, ready to be batched."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.kept import Parts
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.prefix import blind
from mmlm.samples import Sample, asked, encode_images, read_images
from vision.features import FeatureCache

IGNORED = -100  # cross-entropy's mark for what is not learnt


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be batched."""

    id: str
    question: str
    answer: str
    images: tuple[str, ...]
    """Keys of its images in the feature cache."""
    text: Marked
    """Questions and answers, as tokens; those of the answers are learnt."""
    size: int = 0
    """Bytes of its images' features, in proportion to their embeddings."""
    given: int = 0
    """Tokens of its answer that are not learnt, before those that are."""

    @property
    def blind(self) -> int:
        """Tokens before the first that sees an image or foretells the answer."""
        return min(blind(self.text), self.text.prompt - self.given - 1)

    @property
    def learnt(self) -> list[int]:
        """The tokens that are learnt."""
        return self.text.taught

    def split(self, count: int) -> Parts:
        """Its tokens but the last, which foretells nothing: the first `count`, others before the answer, others."""
        prompt = self.text.prompt - self.given
        return tuple(map(tuple, (self.text.ids[:count], self.text.ids[count:prompt], self.text.ids[prompt:-1])))


def encode(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[Encoded]:
    """Samples -> tokens and feature-cache keys; images not seen before are encoded on the way.

    ValueError, naming the sample, for an answer without a token.
    """
    texts = [asked(model, sample, True) for sample in samples]
    for sample, text in zip(samples, texts, strict=True):
        check_learnt(sample, text)
    keys = encode_images(cache, samples, say)
    if model.processor.reader:  # which takes longest: what can be refused has been
        written = read_images(model, cache, samples, f"{say}: text")
        texts = [asked(model, sample, True, read) for sample, read in zip(samples, written, strict=True)]
    return [
        Encoded(sample.id, sample.question, sample.answer, shown, text, sum(map(cache.size, shown)))
        for sample, shown, text in zip(samples, keys, texts, strict=True)
    ]


def check_learnt(sample: Sample, text: Marked) -> None:
    """ValueError, naming the sample, if nothing of it is learnt."""
    if not text.learnt:
        raise ValueError(f"sample {sample.id!r}: nothing to learn, its answer has no token; give it one")
