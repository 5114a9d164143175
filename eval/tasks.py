"""What a model is measured at: how each sample is asked, and which scores its answers get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eval.answers import anls_each, exact_each, relaxed_each
from eval.captions import caption_metrics, cider_each, rouge_l_each
from eval.intervals import Measured
from eval.paired import References
from eval.vqa import accuracy_each
from mmlm.data import Sample, Turn
from mmlm.names import MARK
from vision.images import identity

QUESTION = "{question}"  # in a prompt, where the sample's own stands


@dataclass(frozen=True)
class Task:
    """One kind of question, and its scores."""

    name: str
    main: str
    """The score that samples are ranked by, and that is to fall without the right image."""
    running: str
    """The one that progress shows."""
    so_far: Callable[[Sequence[str], References], list[float]]
    """It of each sample, by itself."""
    each: Callable[[Sequence[str], References], list[float]]
    """The main score of each sample."""
    metrics: Callable[[Sequence[str], References], dict[str, Measured]]
    """All scores, of 0 to 1 but CIDEr."""

    def check_prompt(self, prompt: str) -> None:
        """ValueError for a template that asks nothing, or the same of every sample that has a question of its own."""
        if not prompt.strip():
            raise ValueError(f"prompt: {prompt!r} asks nothing; leave it out, or give it words")
        if self.name == "vqa" and QUESTION not in prompt:
            raise ValueError(f"prompt: {prompt!r} has no {QUESTION}, where a sample's own is to stand; put it in")

    def asked(self, sample: Sample, prompt: str) -> Sample:
        """The sample as it is asked: a caption by the prompt alone, a question by the prompt around it."""
        if self.name == "caption":
            return replace(sample, turns=(Turn("user", prompt), Turn("assistant", sample.answer, True)))
        turns = list(sample.turns)
        last = max((place for place, turn in enumerate(turns[: sample.last]) if turn.role == "user"), default=None)
        if last is not None:
            turns[last] = replace(turns[last], text=prompt.replace(QUESTION, turns[last].text))
        return replace(sample, turns=tuple(turns))


def blind(sample: Sample) -> Sample:
    """The sample without its images, asked the same."""
    turns = [
        replace(turn, text=turn.text.replace(MARK, "").strip()) if MARK in turn.text else turn for turn in sample.turns
    ]
    return replace(sample, images=(), turns=tuple(turns))


def by_image(samples: Sequence[Sample]) -> list[Sample]:
    """Captions of the same images, if any, as one sample: the first, with all of them as references."""
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for place, sample in enumerate(samples):
        key = (*map(identity, sample.images), None if sample.images else place)
        groups.setdefault(key, []).append(sample)
    return [replace(group[0], references=told(group)) for group in groups.values()]


def told(group: Sequence[Sample]) -> tuple[str, ...]:
    """The references of samples of one image: COCO's have all of them each."""
    known = [right(sample) for sample in group]
    return known[0] if len(set(known)) == 1 else tuple(one for its in known for one in its)


def right(sample: Sample) -> tuple[str, ...]:
    """The right answers to a sample."""
    return sample.references or (sample.answer,)


def answer_metrics(said: Sequence[str], references: References) -> dict[str, Measured]:
    """The scores of answers: the official accuracy, exact matches, ANLS and relaxed accuracy."""
    scores = {"accuracy": accuracy_each, "exact": exact_each, "anls": anls_each, "relaxed": relaxed_each}
    return {name: Measured.mean(each(said, references)) for name, each in scores.items()}


TASKS = {
    task.name: task
    for task in (
        Task("caption", "cider", "rouge_l", rouge_l_each, cider_each, caption_metrics),
        Task("vqa", "accuracy", "accuracy", accuracy_each, accuracy_each, answer_metrics),
    )
}
