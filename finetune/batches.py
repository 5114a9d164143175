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
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from finetune.below import Below, gives_tensors
from finetune.config import BatchConfig
from mmlm.decoder import find_layers
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes, blind
from mmlm.processor import Marked
from mmlm.samples import Sample, asked, encode_images, media_of
from vision.features import FeatureCache

IGNORED = -100  # cross-entropy's mark for what is not learnt


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be batched."""

    question: str
    answer: str
    images: tuple[str, ...]
    """Keys of its images in the feature cache."""
    text: Marked
    """Question and answer, as tokens."""
    learnt: int
    """How many of the last tokens are learnt."""

    @property
    def blind(self) -> int:
        """Tokens before the first that sees an image or foretells what is learnt."""
        return blind(self.text, self.learnt)


def encode(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], say: str) -> list[Encoded]:
    """Samples -> tokens and feature-cache keys; images not seen before are encoded on the way."""
    keys = encode_images(cache, samples, say)
    return [
        Encoded(sample.question, sample.answer, shown, *dialogue(model, sample))
        for sample, shown in zip(samples, keys, strict=True)
    ]


def dialogue(model: MultimodalLM, sample: Sample) -> tuple[Marked, int]:
    """The sample as the chat that `ask` would send, answered: its tokens, and how many of the last are learnt."""
    processor = model.processor
    end = processor.tokenizer.eos_token or ""
    marked = processor.tokenize(asked(model, sample) + sample.answer + end)
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
        self.frozen = FrozenText(model)
        self.by_image: dict[tuple[str, ...], list[Encoded]] = {}
        for entry in data:
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
        return batch_of(self.model, self.cache, self.choose(number), self.frozen)


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


def foretelling(labels: Tensor) -> Tensor:
    """Which tokens' logits are learnt from, bool [R, T]: those right before a learnt one."""
    return pad(labels[:, 1:] != IGNORED, (0, 1))


class FrozenText:
    """What the frozen decoder makes of text, computed once: of text before the image, and below the first block."""

    def __init__(self, model: MultimodalLM) -> None:
        self.model = model
        self.decoder = model.decoder.get_decoder()
        layers, first = find_layers(model.decoder), model.config.layers[0]
        self.prefixes = Prefixes(model.decoder)
        usable = first > 0 and self.prefixes.usable and gives_tensors(self.decoder, layers)
        self.below = Below(layers, first) if usable else None

    def states(self, chosen: Sequence[Encoded]) -> Tensor | None:
        """Hidden states [R, T, D] before the first block of what `text_of` leaves of the samples; None: not usable."""
        if self.below is None:
            return None
        texts = [tuple(entry.text.ids) for entry in chosen]
        new = self.below.missing(texts)
        known = {ids: self.below.kept[ids] for ids in texts if ids in self.below.kept}
        if new:
            inputs, rests = text_of(self.model, [chosen[place] for place in new], self.prefixes)
            inputs.pop("media_index")
            lengths = [len(rest.ids) for rest in rests]
            known |= self.below.add(self.decoder, [texts[place] for place in new], lengths, inputs)
        return pad_sequence([known[ids] for ids in texts], batch_first=True)


def text_of(
    model: MultimodalLM, chosen: Sequence[Encoded], prefixes: Prefixes | None
) -> tuple[dict[str, Any], list[Marked]]:
    """Samples -> the text part of a batch, right-padded, and what of each sample's text is in it.

    With `prefixes` the text before the images is not; what the decoder remembers of it is, as `past_key_values`. Such a
    batch is good for one forward: the decoder adds to what it remembers.
    """
    before = [entry.blind if prefixes and prefixes.usable else 0 for entry in chosen]
    rests = [Marked(entry.text.ids[skip:], entry.text.index[skip:]) for entry, skip in zip(chosen, before, strict=True)]
    ids, mask, index = model.processor.pad(rests, "right")
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "media_index": index}
    if prefixes and any(before):
        longest = max(before)
        skipped = torch.tensor(before)[:, None]
        batch["past_key_values"] = prefixes.cache(
            [tuple(entry.text.ids[:skip]) for entry, skip in zip(chosen, before, strict=True)]
        )
        batch["position_ids"] = skipped + torch.arange(ids.shape[1])
        remembered = (torch.arange(longest) >= longest - skipped).long()
        batch["attention_mask"] = torch.cat([remembered, mask], dim=1)
        batch["media_index"] = pad(index, (longest, 0), value=-1)
    return batch, rests


def batch_of(
    model: MultimodalLM, cache: FeatureCache, chosen: Sequence[Encoded], frozen: FrozenText | None = None
) -> dict[str, Any]:
    """Samples -> what `learnt_loss` takes: the model's inputs, `labels` [R, T], and `below` of `FrozenText`."""
    batch, rests = text_of(model, chosen, frozen.prefixes if frozen else None)
    ids = batch["input_ids"]
    labels = torch.full_like(ids, IGNORED)
    for row, (entry, rest) in enumerate(zip(chosen, rests, strict=True)):
        end = len(rest.ids)
        labels[row, end - entry.learnt : end] = ids[row, end - entry.learnt : end]
    media = media_of(cache, [entry.images for entry in chosen], batch.pop("media_index"))
    return batch | media | {"labels": labels, "below": frozen.states(chosen) if frozen else None}
