"""What a model is measured at: how each sample is asked, and which scores its answers get."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from eval.captions import caption_scores, cider_each, exact_match
from eval.vqa import accuracy_each
from mmlm.data import Sample, Turn
from mmlm.names import MARK
from vision.images import identity

QUESTION = "{question}"  # in a prompt, where the sample's own stands
References = Sequence[Sequence[str]]
Each = Callable[[Sequence[str], References], list[float]]


@dataclass(frozen=True)
class Task:
    """One kind of question, and its scores."""

    name: str
    main: str
    """The score that samples are ranked by, and that is to fall without the right image."""
    running: str
    """The one that progress shows: of each sample by itself."""
    each: Mapping[str, Each]
    """Scores that are means of the samples', all of 0 to 1 but CIDEr."""
    whole: Callable[[Sequence[str], References], dict[str, float]]
    """Scores of all samples together."""

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
    """Captions of the same images as one sample, the first, with all of them as references."""
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(map(identity, sample.images)), []).append(sample)
    return [replace(group[0], references=told(group)) for group in groups.values()]


def told(group: Sequence[Sample]) -> tuple[str, ...]:
    """The references of samples of one image: COCO's have all of them each."""
    known = [right(sample) for sample in group]
    return known[0] if len(set(known)) == 1 else tuple(one for its in known for one in its)


def right(sample: Sample) -> tuple[str, ...]:
    """The right answers to a sample."""
    return sample.references or (sample.answer,)


def exact_each(said: Sequence[str], references: References) -> list[float]:
    """1 for each answer that is one of its references, token by token, else 0."""
    return [exact_match([one], [list(dict.fromkeys(its))]) for one, its in zip(said, references, strict=True)]


def rouge_each(said: Sequence[str], references: References) -> list[float]:
    """ROUGE-L of each caption."""
    return [caption_scores([one], [its])["rouge_l"] for one, its in zip(said, references, strict=True)]


def bleu(said: Sequence[str], references: References) -> dict[str, float]:
    """BLEU-1 to 4 of all captions."""
    return {name: score for name, score in caption_scores(said, references).items() if name.startswith("bleu")}


TASKS = {
    task.name: task
    for task in (
        Task("caption", "cider", "rouge_l", {"cider": cider_each, "rouge_l": rouge_each, "exact": exact_each}, bleu),
        Task("vqa", "accuracy", "accuracy", {"accuracy": accuracy_each, "exact": exact_each}, lambda *_: {}),
    )
}
