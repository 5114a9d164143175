"""Which scores the answers of a run get, and by what each is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.clipscore import Embedder, clip_scores, see
from eval.intervals import Measured
from eval.java import java_how, java_metrics
from eval.tasks import Task, right
from mmlm.data import Sample
from mmlm.ranks import main_says

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
        from mmlm.data.clip import Clip

        more.append(ClipScore(Clip(clip)))
        how |= dict.fromkeys(("clip_score", "ref_clip_score"), clip)
    return Metrics(own(task), more, how)


class ClipScore:
    """CLIPScore of what is said to samples; of several images the mean counts. Each is looked at once."""

    def __init__(self, clip: Embedder) -> None:
        self.clip = clip
        self.seen: dict[str, Tensor] = {}

    def __call__(self, said: Sequence[str], samples: Sequence[Sample]) -> dict[str, Measured]:
        new = [sample for sample in samples if sample.id not in self.seen]
        if new:
            its = see(self.clip, [image for sample in new for image in sample.images])
            parts = its.split([len(sample.images) for sample in new])
            self.seen |= {sample.id: part.mean(0) for sample, part in zip(new, parts, strict=True)}
        seen = torch.stack([self.seen[sample.id] for sample in samples])
        found = clip_scores(self.clip, seen, said, list(map(right, samples)))
        return {name: Measured.mean(scores) for name, scores in found.items()}
