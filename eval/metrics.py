"""Which scores the answers of a run get, and by what each is computed."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.clipscore import Embedder, clip_scores, see
from eval.intervals import Measured
from eval.java import java_how, java_metrics
from eval.tasks import Task, right
from mmlm.data import Sample
from mmlm.ranks import main_says, main_writes
from vision.images import identity

Metric = Callable[[Sequence[str], Sequence[Sample]], dict[str, Measured]]
"""What is said to each sample -> scores by name."""
OWN = "mmlm"  # what computes most of them


@dataclass(frozen=True)
class Metrics:
    """The scores of a run."""

    task: Metric
    """Those that its task has always."""
    more: Sequence[Metric]
    how: Mapping[str, str]
    """Of each of `more`, by what it is computed, or "left out: ..." and why; of others `OWN`."""


def own(task: Task) -> Metric:
    """The scores that a task has wherever it runs."""
    return lambda said, samples: task.metrics(said, list(map(right, samples)))


def metrics_for(task: Task, clip: str | None = None) -> Metrics:
    """The scores of a task here: those of captions with METEOR and SPICE, where they can be had.

    To be called in every process. The main one is to score; it alone loads what that takes.

    Args:
        clip: the model of CLIPScore, as `mmlm.data.clip.Clip` takes it; None: there is none.

    ValueError for one that cannot be loaded.
    """

    def java(said: Sequence[str], samples: Sequence[Sample]) -> dict[str, Measured]:
        return java_metrics(said, list(map(right, samples)), how)

    more, how = list[Metric](), dict[str, str]()
    if task.name == "caption":
        more.append(java)
        how |= main_says(java_how)
    if clip:
        with main_writes() as mine:
            if mine:
                from mmlm.data.clip import Clip

                more.append(ClipScore(Clip(clip)))
        how |= dict.fromkeys(("clip_score", "ref_clip_score"), clip)
    return Metrics(own(task), more, how)


def check_clip(samples: Sequence[Sample]) -> None:
    """ValueError for a sample that CLIPScore has nothing to see of."""
    for sample in samples:
        if not sample.images:
            raise ValueError(f"sample {sample.id!r}: CLIPScore needs an image; leave --clip out, or the sample")


class ClipScore:
    """CLIPScore of what is said to samples; of several images the mean counts. Each is looked at once."""

    def __init__(self, clip: Embedder) -> None:
        self.clip = clip
        self.seen: dict[tuple[Hashable, ...], Tensor] = {}

    def __call__(self, said: Sequence[str], samples: Sequence[Sample]) -> dict[str, Measured]:
        keys = [tuple(map(identity, sample.images)) for sample in samples]
        new = {key: sample.images for key, sample in zip(keys, samples, strict=True) if key not in self.seen}
        if new:
            its = see(self.clip, [image for images in new.values() for image in images])
            parts = its.split([len(images) for images in new.values()])
            self.seen |= {key: part.mean(0) for key, part in zip(new, parts, strict=True)}
        seen = torch.stack([self.seen[key] for key in keys])
        found = clip_scores(self.clip, seen, said, list(map(right, samples)))
        return {name: Measured.mean(scores) for name, scores in found.items()}
