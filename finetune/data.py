"""The quickstart's two data sets, read into samples: easy-VQA and OpenMoji scenes."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.redraw import Redrawn, source
from finetune.scenes import Scene, test_scenes, train_scenes
from mmlm.data import open_data
from mmlm.samples import Sample
from vision.images import Lazy

EASY_VQA_CREDIT = "easy-VQA (MIT), Victor Zhou, github.com/vzhou842/easy-VQA"


def easy_vqa(split: str, images: int | None = None) -> list[Sample]:
    """easy-VQA's own split "train" or "test", or the questions of its first `images` images.

    ImportError, with the mend, if the package is missing.
    """
    rows: Sequence[Sample] = open_data("easy-vqa:", split=split)
    return [sample for sample in rows if images is None or int(Path(str(sample.images[0])).stem) < images]


def redrawn(samples: Sequence[Sample], share: float, seed: int = 0) -> list[Sample]:
    """easy-VQA's `samples`, a share of their images drawn again at other sizes; samples of one image share it still."""

    def shown(image: Lazy) -> Lazy:
        chosen = random.Random(f"{seed} of {source(str(image))}").random() < share
        return Redrawn(str(image), seed) if chosen else image

    return [replace(sample, images=tuple(map(shown, sample.images))) for sample in samples]


def named(samples: Sequence[Sample], question: str) -> list[Sample]:
    """A caption for every image of which easy-VQA's questions `samples` ask both color and shape: "a red circle"."""
    known: dict[tuple[Lazy, ...], dict[str, str]] = {}
    for sample in samples:
        known.setdefault(sample.images, {})[sample.kind] = sample.answer
    captions = {
        its: f"a {said['color']} {said['shape']}" for its, said in known.items() if {"color", "shape"} <= {*said}
    }
    return [
        Sample.pair(f"easy-vqa-caption-{n}", its, question, caption, (caption,), "caption")
        for n, (its, caption) in enumerate(captions.items())
    ]


def scenes(split: str, count: int, question: str, seed: int = 0) -> list[Sample]:
    """Captioned scenes: in "train" one for each of a scene's five captions, in "test" one, with all as references."""
    drawn: Sequence[Scene] = (train_scenes if split == "train" else test_scenes)(count, seed)
    return [
        Sample.pair(f"{scene.id}-{n}", (scene.image,), question, caption, scene.captions, "caption")
        for scene in drawn
        for n, caption in enumerate(scene.captions if split == "train" else scene.captions[:1])
    ]
