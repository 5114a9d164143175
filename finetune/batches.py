"""Samples into batches: encoded once, grouped by image, drawn in an order that the seed and the step decide alone.

R rows, T text tokens.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from finetune.below import Below
from finetune.config import BatchConfig
from mmlm.kept import Parts
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes, blind
from mmlm.processor import Marked
from mmlm.samples import Sample, asked, encode_images, media_of, read_images
from vision.features import FeatureCache

AHEAD = 16  # batches
IGNORED = -100  # cross-entropy's mark for what is not learnt


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be batched."""

    question: str
    answer: str
    images: tuple[str, ...]
    """Keys of its images in the feature cache."""
    text: Marked
    """Questions and answers, as tokens; those of the answers are learnt."""

    @property
    def blind(self) -> int:
        """Tokens before the first that sees an image or foretells what is learnt."""
        return blind(self.text)

    @property
    def learnt(self) -> list[int]:
        """The tokens that are learnt."""
        return [token for start, stop in self.text.learnt for token in self.text.ids[start:stop]]

    def split(self, count: int) -> Parts:
        """Its tokens but the last, which foretells nothing: the first `count`, others before what is learnt, others."""
        prompt = self.text.prompt
        return tuple(map(tuple, (self.text.ids[:count], self.text.ids[count:prompt], self.text.ids[prompt:-1])))


def encode(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[Encoded]:
    """Samples -> tokens and feature-cache keys; images not seen before are encoded on the way.

    ValueError, naming the sample, for an answer without a token.
    """
    texts = [asked(model, sample, True) for sample in samples]
    for sample, text in zip(samples, texts, strict=True):
        if not text.learnt:
            raise ValueError(f"sample {sample.id!r}: nothing to learn, its answer has no token; give it one")
    keys = encode_images(cache, samples, say)
    if model.processor.reader:  # which takes longest: what can be refused has been
        written = read_images(model, cache, samples, f"{say}: text")
        texts = [asked(model, sample, True, read) for sample, read in zip(samples, written, strict=True)]
    return [
        Encoded(sample.question, sample.answer, shown, text)
        for sample, shown, text in zip(samples, keys, texts, strict=True)
    ]


class Batches:
    """Batch number n of a data set, for any n: a function of the seed and n alone, so that a run can be resumed.

    A batch has `config.images` images of about equal length, with up to `config.per_image` samples of each.
    """

    def __init__(
        self, model: MultimodalLM, cache: FeatureCache, data: Sequence[Encoded], config: BatchConfig, seed: int
    ) -> None:
        self.model, self.cache, self.config, self.seed = model, cache, config, seed
        self.below = Below(model)
        self.by_image: dict[tuple[str, ...], list[Encoded]] = {}
        for entry in sorted(data, key=lambda entry: (entry.question, entry.answer)):
            self.by_image.setdefault(entry.images, []).append(entry)
        self.weights = rarity(data, config.balance)
        self.length = {
            images: (sum(map(cache.size, images)), max(len(entry.text.ids) for entry in mine))
            for images, mine in self.by_image.items()
        }  # what a batch is padded to: media first, since they cost most
        self.epoch_of, self.plan = -1, list[list[tuple[str, ...]]]()

    def __len__(self) -> int:
        """Batches of one epoch: every image once."""
        return math.ceil(len(self.by_image) / self.config.images)

    def choose(self, number: int) -> list[Encoded]:
        """The samples of batch `number`."""
        epoch, place = divmod(number, len(self))
        if epoch != self.epoch_of:
            self.epoch_of, self.plan = epoch, self.order(epoch)
        drawn = random.Random(f"{self.seed} {number}")
        chosen = []
        for images in self.plan[place]:
            mine = self.by_image[images]
            # Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003: a weighted draw without replacement
            mine = sorted(mine, key=lambda entry: drawn.random() ** (1 / self.weights[entry.question, entry.answer]))
            chosen += mine[-self.config.per_image :]
        return chosen

    def order(self, epoch: int) -> list[list[tuple[str, ...]]]:
        """The images of each batch of an epoch: shuffled, then sorted by length within windows of 32 batches."""
        drawn = random.Random(f"{self.seed} epoch {epoch}")
        images = sorted(self.by_image)
        drawn.shuffle(images)
        size = self.config.images
        batches = []
        for start in range(0, len(images), 32 * size):
            window = sorted(images[start : start + 32 * size], key=self.length.__getitem__)
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        drawn.shuffle(batches)
        return batches

    def __getitem__(self, number: int) -> dict[str, Any]:
        self.look_ahead(number)
        return batch_of(self.model, self.cache, self.choose(number), self.below)

    def look_ahead(self, number: int) -> None:
        """Has texts of the next batches computed too where some of this one are new, so that chunks are full."""
        texts = self.texts(number)
        if self.below.usable and not self.below.keeps(texts):
            for ahead in range(number + 1, number + AHEAD):
                texts += self.texts(ahead)
                if len(texts) > self.below.most // 4:  # of two pieces each: the first must still be kept then
                    break
            self.below.states(texts)

    def texts(self, number: int) -> list[Parts]:
        """The texts of a batch, parted where they stop to be blind and where answers start."""
        return [entry.split(entry.blind) for entry in self.choose(number)]

    def shown(self, number: int) -> dict[str, Any]:
        """What batch `number` shows, as media, and teaches of it: `labels` [R, L], the answers. No decoder is run."""
        chosen = [entry for entry in self.choose(number) if entry.images]
        if not chosen:
            return {"labels": torch.zeros(0, 0, dtype=torch.int64)}
        answers = [torch.tensor(entry.learnt) for entry in chosen]
        labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED)
        index = torch.zeros(len(chosen), 1, dtype=torch.int64)
        return media_of(self.cache, [entry.images for entry in chosen], index) | {"labels": labels}

    def words(self) -> Counter[int]:
        """How often each token is learnt in an epoch of all samples."""
        entries = (entry for mine in self.by_image.values() for entry in mine)
        return Counter(word for entry in entries for word in entry.learnt)


def rarity(data: Sequence[Encoded], power: float) -> dict[tuple[str, str], float]:
    """Weight of each (question, answer): the answer's share among those to the question, to the power of -power.

    A question's samples have weight 1 in the mean, so that no question is drawn more often for having many answers.
    """
    both = Counter((entry.question, entry.answer) for entry in data)
    asked = Counter(entry.question for entry in data)
    share = {pair: count / asked[pair[0]] for pair, count in both.items()}
    mean = dict.fromkeys(asked, 0.0)
    for (question, _), part in share.items():
        mean[question] += part ** (1 - power)
    return {pair: part**-power / mean[pair[0]] for pair, part in share.items()}


class Mixture:
    """Several data sets in turn, in fixed shares: batch number n is a function of n alone."""

    def __init__(self, parts: Sequence[Batches], shares: Sequence[float]) -> None:
        self.parts, self.shares = parts, [share / sum(shares) for share in shares]
        self.counts = [0] * len(parts)
        self.places: list[tuple[int, int]] = []  # of the batches so far

    def __getitem__(self, number: int) -> dict[str, Any]:
        part, place = self.locate(number)
        return self.parts[part][place]

    def shown(self, number: int) -> dict[str, Any]:
        part, place = self.locate(number)
        return self.parts[part].shown(place)

    def words(self) -> Counter[int]:
        return sum((part.words() for part, share in zip(self.parts, self.shares, strict=True) if share), Counter())

    def locate(self, number: int) -> tuple[int, int]:
        """Which part batch `number` is from, and its number there: the part whose count lags most behind its share."""
        while len(self.places) <= number:
            drawn = len(self.places) + 1
            lag = [share * drawn - count for share, count in zip(self.shares, self.counts, strict=True)]
            part = lag.index(max(lag))
            self.places.append((part, self.counts[part]))
            self.counts[part] += 1
        return self.places[number]


def batch_of(
    model: MultimodalLM, cache: FeatureCache, chosen: Sequence[Encoded], below: Below | None = None
) -> dict[str, Any]:
    """Samples -> what `learnt_loss` takes: the model's inputs, right-padded, `labels` [R, T], and states from `below`.

    Labels are what each token foretells, where that is learnt. With `below`, text before the images is left to what the
    decoder remembers of it; such a batch is good for one forward.
    """
    prefixes = below.prefixes if below else Prefixes(model.decoder)
    skipped = [entry.blind if below and prefixes.usable else 0 for entry in chosen]
    texts = [entry.split(count) for entry, count in zip(chosen, skipped, strict=True)]
    batch = prefixes.rests([(before, seeing + answer) for before, seeing, answer in texts])
    labels = torch.full_like(batch["input_ids"], IGNORED)
    index = torch.full_like(batch["attention_mask"], -1)
    first = index.shape[1] - labels.shape[1]
    for row, (entry, (_, seeing, answer), count) in enumerate(zip(chosen, texts, skipped, strict=True)):
        rest, ahead = len(seeing) + len(answer), count + 1
        for start, stop in entry.text.learnt:
            labels[row, start - ahead : stop - ahead] = torch.tensor(entry.text.ids[start:stop])
        index[row, first : first + rest] = torch.tensor(entry.text.index[count : count + rest])
    media = media_of(cache, [entry.images for entry in chosen], index)
    states = pad_sequence(below.states(texts), batch_first=True) if below and below.usable else None
    return batch | media | {"labels": labels, "below": states}
