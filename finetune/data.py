"""The quickstart's two data sets, read into samples: easy-VQA and OpenMoji scenes."""

import random
from collections.abc import Sequence
from dataclasses import replace

from finetune.redraw import Redrawn, source
from finetune.scenes import Scene, test_scenes, train_scenes
from mmlm.samples import Sample
from mmlm.zoo import EXTRA
from vision.images import Lazy

EASY_VQA_CREDIT = "easy-VQA (MIT), Victor Zhou, github.com/vzhou842/easy-VQA"


def easy_vqa(split: str, images: int | None = None) -> list[Sample]:
    """easy-VQA's own split "train" or "test", or the questions of its first `images` images.

    ImportError, with the mend, if the package is missing.
    """
    try:
        import easy_vqa as package
    except ImportError as error:
        raise ImportError(f"easy-VQA {EXTRA}") from error
    questions = {"train": package.get_train_questions, "test": package.get_test_questions}[split]()
    paths = {"train": package.get_train_image_paths, "test": package.get_test_image_paths}[split]()
    return [
        Sample.pair(f"easy-vqa-{split}-{n}", (paths[image],), question, answer, (answer,), kind_of(answer))
        for n, (question, answer, image) in enumerate(zip(*questions, strict=True))
        if images is None or image < images
    ]


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


def kind_of(answer: str) -> str:
    """The answer type of an easy-VQA question."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"


def scenes(split: str, count: int, question: str, seed: int = 0) -> list[Sample]:
    """Captioned scenes: in "train" one for each of a scene's five captions, in "test" one, with all as references."""
    drawn: Sequence[Scene] = (train_scenes if split == "train" else test_scenes)(count, seed)
    return [
        Sample.pair(f"{scene.id}-{n}", (scene.image,), question, caption, scene.captions, "caption")
        for scene in drawn
        for n, caption in enumerate(scene.captions if split == "train" else scene.captions[:1])
    ]
