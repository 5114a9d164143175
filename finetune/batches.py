"""Samples into batches: encoded once, grouped by image, drawn in an order that the seed and the step decide alone.

R rows, T text tokens.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.config import BatchConfig
from mmlm.media import collate
from mmlm.model import MultimodalLM
from mmlm.processor import Marked
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache

IGNORED = -100  # cross-entropy's mark for what is not learnt


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be batched."""

    images: tuple[str, ...]
    """Keys of its images in the feature cache."""
    text: Marked
    """Question and answer, as tokens."""
    learnt: int
    """How many of the last tokens are learnt."""


def encode(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[Encoded]:
    """Samples -> tokens and feature-cache keys; images not seen before are encoded on the way."""
    keys = encode_images(cache, samples, say)
    return [Encoded(shown, *dialogue(model, sample)) for sample, shown in zip(samples, keys, strict=True)]


def dialogue(model: MultimodalLM, sample: Sample) -> tuple[Marked, int]:
    """The sample as the chat that `ask` would send, answered: its tokens, and how many of the last are learnt."""
    processor = model.processor
    asked = processor.chat(model.chat(sample.question, len(sample.images)))
    end = processor.tokenizer.eos_token or ""
    marked = processor.tokenize(asked + sample.answer + end)
    answer = processor.tokenizer(sample.answer + end, add_special_tokens=False)["input_ids"]
    return marked, len(answer)


class Batches:
    """Batch number n of a data set, for any n: a function of the seed and n alone, so that a run can be resumed.

    A batch has `config.images` images of about equal length, with up to `config.per_image` samples of each.
    """

    def __init__(
        self, model: MultimodalLM, cache: FeatureCache, data: Sequence[Encoded], config: BatchConfig, seed: int
    ) -> None:
        self.model, self.cache, self.config, self.seed = model, cache, config, seed
        self.by_image: dict[tuple[str, ...], list[Encoded]] = {}
        for entry in data:
            self.by_image.setdefault(entry.images, []).append(entry)
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
            chosen += drawn.sample(mine, min(self.config.per_image, len(mine)))
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
        return batch_of(self.model, self.cache, self.choose(number))


class Mixture:
    """Several data sets in turn, in fixed shares: batch number n is a function of n alone."""

    def __init__(self, parts: Sequence[Batches], shares: Sequence[float]) -> None:
        self.parts, self.shares = parts, [share / sum(shares) for share in shares]

    def __getitem__(self, number: int) -> dict[str, Any]:
        part, place = self.locate(number)
        return self.parts[part][place]

    def locate(self, number: int) -> tuple[int, int]:
        """Which part batch `number` is from, and its number there: the part whose count lags most behind its share."""
        counts = [0] * len(self.parts)
        part = 0
        for step in range(number + 1):
            lag = [share * (step + 1) - count for share, count in zip(self.shares, counts, strict=True)]
            part = lag.index(max(lag))
            counts[part] += 1
        return part, counts[part] - 1


def batch_of(model: MultimodalLM, cache: FeatureCache, chosen: Sequence[Encoded]) -> dict[str, Any]:
    """Samples -> what `MultimodalLM.forward` takes, right-padded, and `labels` [R, T]."""
    distinct = {key: number for number, key in enumerate(dict.fromkeys(k for entry in chosen for k in entry.images))}
    ids, mask, index = model.processor.pad([entry.text for entry in chosen], "right")
    labels = torch.full_like(ids, IGNORED)
    for row, entry in enumerate(chosen):
        end = len(entry.text.ids)
        labels[row, end - entry.learnt : end] = ids[row, end - entry.learnt : end]
    rows = [[distinct[key] for key in entry.images] for entry in chosen]
    media = collate([cache.load(key) for key in distinct], rows, index)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels} | media
