"""Few-shot: examples as turns of the chat, with their images, before each sample's own question.

As Flamingo is asked (Alayrac et al. 2022, arXiv:2204.14198): examples are drawn at random for each sample by itself, or
are those whose images are the most similar (RICES, Yang et al. 2022, arXiv:2109.05014), the most similar of them last.
"""

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tqdm import tqdm

from eval.how import CLIP
from eval.known import Keys, Known
from eval.run import shuffle
from eval.settings import RANDOM, EvalConfig
from eval.similar import ClipLook, OwnLook, Similar
from eval.tasks import blind
from mmlm import zoo
from mmlm.config import AdapterConfig
from mmlm.data import Sample, Turn
from mmlm.messages import flatten
from mmlm.names import MARK
from mmlm.ranks import main_says
from mmlm.turns import asking
from vision.images import identity

Order = Callable[[Sample], Iterator[int]]
"""Places of the examples there are, as a sample takes them: the best first."""


def few(config: AdapterConfig, shots: Iterable[Sample], sample: Sample) -> Sample:
    """The sample with examples before it, as questions that were asked and answered; without any it is what it was.

    A system message stands once, first: the sample's own, if it has one. ValueError for a question without words.
    """
    if not (shots := list(map(example, shots))):
        return sample
    own = placed(config, sample)
    begun = next((place for place, turn in enumerate(own) if turn.role != "system"), len(own))
    told = [replace(turn, learnt=False) for shot in shots for turn in placed(config, shot)]
    images = tuple(image for one in (*shots, sample) for image in one.images)
    return replace(sample, images=images, turns=(*own[:begun], *told, *own[begun:]))


def example(sample: Sample) -> Sample:
    """What is told of a sample as an example: its turns up to the last answer, without a system's, and their images."""
    turns = sample.turns
    kept = [place for place, turn in enumerate(turns[: sample.last + 1]) if turn.role != "system"]
    if len(kept) == len(turns):
        return sample
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    of: list[int | None] = [place for place, turn in enumerate(turns) for _ in range(turn.text.count(MARK))]
    its = zip(sample.images, of or [first] * len(sample.images), strict=True)
    images = tuple(image for image, place in its if place in kept)
    return replace(sample, images=images, turns=tuple(turns[place] for place in kept))


def placed(config: AdapterConfig, sample: Sample) -> tuple[Turn, ...]:
    """The sample's turns with a mark for each image: if none has any, where `asking` puts the images."""
    turns = list(sample.turns)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None and not sample.marks:
        try:
            (message,) = flatten(asking(config, turns[first].text, len(sample.images))[-1:], MARK)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
        turns[first] = replace(turns[first], text=message["content"])
    return tuple(turns)


class Chooser:
    """Chooses examples for the samples of a run. ValueError for a CLIP that cannot be loaded."""

    def __init__(self, config: EvalConfig) -> None:
        self.config, clip = config, config.shots_by.startswith(CLIP)
        self.clip = ClipLook(config.shots_by, zoo.home() / "clip") if clip else None

    @property
    def looks(self) -> bool:
        """Is it by a sample's images that its examples are chosen?"""
        return bool(self.config.shots) and self.config.shots_by != RANDOM

    def __call__(self, known: Known, samples: Sequence[Sample], examples: Sequence[Sample]) -> list[list[Sample]]:
        """The examples of each sample, chosen among those with an image and a question. To be called by every process.

        ValueError if there are too few.
        """
        count = self.config.shots
        if not count:
            return [[] for _ in samples]
        examples = [one for one in map(example, examples) if one.images and blind(one).question.strip()]
        if len(examples) < count:
            raise ValueError(
                f"{self.config.examples.data}: {len(examples)} samples with an image, and shots={count} (--shots) are "
                "to be chosen among them; ask for fewer, or name data with more, shots_from= (--shots-from)"
            )
        if not self.looks:
            order: Order = at_random(len(examples), self.config.seed)
        elif self.clip is None:
            known.add(examples)
            order = Similar(examples, OwnLook(known), centred=True)
        else:
            self.clip.add([*examples, *samples])
            order = Similar(examples, self.clip, centred=False)
        return choose(known, samples, examples, count, order)


def at_random(count: int, seed: int) -> Order:
    """All of so many places, drawn for each sample by its id: whatever is asked beside it, and how many are taken."""

    def order(sample: Sample) -> Iterator[int]:
        drawn, moved = random.Random(f"{seed} {sample.id}"), dict[int, int]()
        for place in range(count):  # Fisher and Yates's shuffle, as far as it is asked for
            other = drawn.randrange(place, count)
            yield moved.get(other, other)
            moved[other] = moved.get(place, place)

    return order


def others(own: Sequence[Keys], before: Sequence[Collection[str]]) -> Iterator[Keys]:
    """The images that each sample is shown in place of its own: the next in the order of `shuffle` that are in none of
    the examples before it; without examples, or where all are, just the next."""
    following = dict(zip(own, shuffle(own), strict=True))
    for keys, shown in zip(own, map(set, before), strict=True):
        other = following[keys]
        while other != keys and not shown.isdisjoint(other):
            other = following[other]
        yield following[keys] if other == keys else other


def choose(
    known: Known, samples: Sequence[Sample], examples: Sequence[Sample], count: int, order: Order
) -> list[list[Sample]]:
    """So many examples for each sample, the best last; the images of all that are chosen are known then.

    None has an image of the sample's own, be it under another name, nor one that cannot be opened. To be called by
    every process; the main one orders and chooses.

    ValueError, naming the sample, if there are not as many.
    """

    def take(sample: Sample) -> list[int]:
        own = set(known.keys(sample))
        fit = (place for place in order(sample) if may_show(examples[place], own))
        if len(places := list(islice(fit, count))) < count:
            raise ValueError(
                f"sample {sample.id!r}: only {len(places)} examples of other images than its own, and shots (--shots) "
                f"asks for {count}; ask for fewer, or name data with more, shots_from= (--shots-from)"
            )
        return places[::-1]

    def may_show(example: Sample, own: set[str]) -> bool:
        return known.error(example) is None and own.isdisjoint(known.keys(example))

    def taken(waiting: Sequence[Sample]) -> list[list[int]]:
        return main_says(lambda: [take(sample) for sample in tqdm(waiting, desc="choosing examples", unit="sample")])

    chosen = dict[int, list[int]]()
    first = dict[Hashable, int]()
    # those of the same images together, whose order `Similar` then remembers
    waiting = sorted(
        range(len(samples)), key=lambda row: first.setdefault(tuple(map(identity, samples[row].images)), row)
    )
    while waiting:  # what is chosen is encoded, and some of it then turns out to be unfit
        chosen |= zip(waiting, taken([samples[row] for row in waiting]), strict=True)
        known.add(examples[place] for row in waiting for place in chosen[row])
        own = {row: set(known.keys(samples[row])) for row in waiting}
        waiting = [row for row in waiting if not all(may_show(examples[place], own[row]) for place in chosen[row])]
    return [[examples[place] for place in chosen[row]] for row in range(len(samples))]
