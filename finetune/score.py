"""What a model is worth while it learns: scored on held-out samples, with their images and with shuffled ones."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device

from eval.captions import caption_scores
from eval.report import Card, write_report
from eval.run import predict, shuffle
from eval.vqa import accuracy_each, vqa_accuracy
from finetune.collate import Collator
from finetune.encoded import Encoded, encode
from finetune.folder import SAMPLES
from finetune.loss import learnt_loss
from finetune.run_config import RunConfig, ScoreConfig
from finetune.survey import learnable
from mmlm.data import Rows, Sample
from mmlm.model import MultimodalLM
from mmlm.ranks import everyone, shares, total
from vision.features import FeatureCache
from vision.images import identity

BATCH = 16  # samples of a forward whose loss is taken
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
METRICS: dict[str, tuple[str, Metric]] = {
    "caption": ("cider", lambda said, right: caption_scores(said, right)["cider"]),
    "vqa": ("vqa_accuracy", vqa_accuracy),
}


class Scorer:
    """Scores the model on held-out samples; called in every process, each of which takes a part of them.

    Args:
        folder: where samples.html goes, with what the model says to the first samples.
    """

    def __init__(
        self, model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], config: ScoreConfig, folder: Path
    ) -> None:
        self.model, self.cache, self.samples, self.config, self.folder = model, cache, samples, config, folder
        self.collate = Collator(model, cache)
        self.entries = encode(model, cache, samples, "encoding held-out images")
        self.most = max(entry.text.answer for entry in self.entries)
        """Tokens of an answer."""
        self.last: dict[str, float] = {}
        """What was found last."""

    def __call__(self, step: int) -> dict[str, float]:
        """The score, "score", of which more is better; what it is made of; and that with the images shuffled."""
        for sample in self.samples:  # whose features others may have taken the room of
            for image in sample.images:
                self.cache.add(image)
        if self.config.by == "loss":
            loss, other = self.loss(self.entries), self.loss(shuffled(self.entries))
            self.last = {"held_out_loss": loss, "held_out_loss_shuffled": other}
            score = -loss
        else:
            name, metric = METRICS[self.config.by]
            right = [sample.references or (sample.answer,) for sample in self.samples]
            score, other = (metric(self.answers(shown), right) for shown in (self.samples, mixed(self.samples)))
            self.last = {name: score, f"{name}_shuffled": other}
        if self.config.cards:
            self.show(step)
        return {"score": score, **self.last}

    @torch.no_grad()
    def loss(self, entries: Sequence[Encoded]) -> float:
        """Of a learnt token, in the mean. Every process has as many batches as any, of company alone if need be."""
        world, rank = shares(self.model)
        mine = entries[rank::world]
        most = -(-len(entries) // world)
        summed, count = 0.0, 0.0
        for start in range(0, most, BATCH):
            batch = send_to_device(self.collate(mine[start : start + BATCH]), self.model.device)
            loss, learnt = learnt_loss(self.model, self.model, batch)
            summed, count = summed + loss.item(), count + learnt
        summed, count = total([summed, count], world)
        return summed / count

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """What the model says to each sample."""
        world, rank = shares(self.model)
        mine = samples[rank::world]
        said = predict(self.model, self.cache, mine, max_new_tokens=self.most, say="asking") if mine else []
        order = sorted(range(len(samples)), key=lambda place: place % world)
        return [answer for _, answer in sorted(zip(order, everyone(said, world), strict=True))]

    def show(self, step: int) -> None:
        """Writes samples.html."""
        samples = self.samples[: self.config.cards]
        said = self.answers(samples)
        if PartialState().is_main_process:
            right = accuracy_each(said, [sample.references or (sample.answer,) for sample in samples])
            cards = [Card(*one) for one in zip(samples, said, (each == 1 for each in right), strict=True)]
            rows = [(name, f"{value:.3f}") for name, value in self.last.items()]
            write_report(self.folder / SAMPLES, f"{self.folder.name}, step {step}", "", rows, cards)


def shuffled(entries: Sequence[Encoded]) -> list[Encoded]:
    """Samples with the images of others."""
    others = shuffle([entry.images for entry in entries])
    return [replace(entry, images=images) for entry, images in zip(entries, others, strict=True)]


def mixed(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with the images of others, of which none keeps its own unless no others are as many."""
    images = [tuple(map(identity, sample.images)) for sample in samples]
    known = dict(zip(images, (sample.images for sample in samples), strict=True))
    return [replace(sample, images=known[its]) for sample, its in zip(samples, shuffle(images), strict=True)]


def held_out(
    model: MultimodalLM, cache: FeatureCache, data: Sequence[Rows], config: RunConfig
) -> tuple[list[Sample], list[str]]:
    """Samples of all data sets, drawn by the seed; and why others that were drawn are not among them."""
    places = [(which, number) for which, rows in enumerate(data) for number in range(len(rows))]
    random.Random(f"{config.seed} held out").shuffle(places)
    samples, broken = list[Sample](), list[str]()
    for which, number in places:
        if len(samples) == config.score.samples:
            break
        try:
            sample, *_ = learnable(model, data[which], number, config.longest)
            for image in sample.images:
                cache.add(image)
            samples.append(sample)
        except ValueError as error:
            broken.append(str(error))
    return samples, broken
