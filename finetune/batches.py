"""Which samples a step has: grouped by image, drawn in an order that the seed and the step decide alone.

N samples, G groups of samples that show the same images.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.config import BatchConfig
from finetune.encoded import Encoded

WINDOW = 32  # batches within which images are sorted by length

Name = tuple[int, int]
"""A sample: which data set, and its number there."""

Change = Callable[[Encoded, int, Name], Encoded]
"""What a step makes of a sample of that name."""


@dataclass(frozen=True)
class Facts:
    """What batches are planned by: a number for each of N samples."""

    group: np.ndarray
    """Which images it shows: 0 .. G - 1."""
    question: np.ndarray
    answer: np.ndarray
    """What it asks and says: the same number for the same words."""
    size: np.ndarray
    """Of its media."""
    length: np.ndarray
    """Its tokens."""
    words: Counter[int]
    """How often each token is learnt in all of them."""


def facts_of(data: Sequence[Encoded]) -> Facts:
    """The facts of samples at hand."""

    def numbered(values: Sequence[object]) -> np.ndarray:
        numbers = {value: number for number, value in enumerate(sorted(set(values)))}  # type: ignore[type-var]
        return np.array([numbers[value] for value in values])

    return Facts(
        numbered([entry.images for entry in data]),
        numbered([entry.question for entry in data]),
        numbered([entry.answer for entry in data]),
        np.array([entry.size for entry in data]),
        np.array([len(entry.text.ids) for entry in data]),
        Counter(word for entry in data for word in entry.learnt),
    )


class Batches:
    """The samples of batch number n of a data set, for any n: a function of the seed and n alone.

    A batch has `config.images` images of about equal length, with up to `config.per_image` samples of each.

    Args:
        data: samples by their number; they are not looked at before they are read.
        facts: of the data; None: of samples at hand.
    """

    def __init__(self, data: Sequence[Encoded], config: BatchConfig, seed: int, facts: Facts | None = None) -> None:
        self.data, self.config, self.seed = data, config, seed
        self.facts = its = facts_of(data) if facts is None else facts
        self.mine = np.lexsort((its.answer, its.question, its.group))  # samples, group by group
        self.starts = np.searchsorted(its.group[self.mine], np.arange(its.group.max(initial=-1) + 2))
        self.rarity = rarity(its, config.balance)
        lengths = np.maximum.reduceat(its.length[self.mine], self.starts[:-1]) if len(data) else its.length
        self.cost = list(zip(its.size[self.mine[self.starts[:-1]]].tolist(), lengths.tolist(), strict=True))
        """Of each group what a batch is padded to: media first, since they cost most."""
        self.epoch_of, self.plan = -1, list[list[int]]()

    def __len__(self) -> int:
        """Batches of one epoch: every image once."""
        return math.ceil(len(self.cost) / self.config.images)

    def choose(self, number: int) -> list[list[int]]:
        """The samples of batch `number`, image by image."""
        epoch, place = divmod(number, len(self))
        if epoch != self.epoch_of:
            self.epoch_of, self.plan = epoch, self.order(epoch)
        drawn = random.Random(f"{self.seed} {number}")
        chosen = []
        for group in self.plan[place]:
            mine = self.mine[self.starts[group] : self.starts[group + 1]].tolist()
            # Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003: a weighted draw without replacement
            keys = {sample: drawn.random() ** (1 / self.rarity[sample]) for sample in mine}
            chosen.append(sorted(mine, key=keys.__getitem__)[-self.config.per_image :])
        return chosen

    def part(self, number: int, place: int = 0, of: int = 1) -> list[int]:
        """The samples of batch `number`, or of one of the parts that its images are parted into."""
        return [sample for group in self.choose(number)[place::of] for sample in group]

    def order(self, epoch: int) -> list[list[int]]:
        """The groups of each batch of an epoch: shuffled, then sorted by cost within windows."""
        drawn = random.Random(f"{self.seed} epoch {epoch}")
        groups = list(range(len(self.cost)))
        drawn.shuffle(groups)
        size = self.config.images
        batches = []
        for start in range(0, len(groups), WINDOW * size):
            window = sorted(groups[start : start + WINDOW * size], key=self.cost.__getitem__)
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        drawn.shuffle(batches)
        return batches


def rarity(facts: Facts, power: float) -> np.ndarray:
    """The weight of each sample: its answer's share among those to its question, to the power of -power.

    A question's samples have weight 1 in the mean, so that no question is drawn more often for having many answers.
    """
    pairs = np.stack([facts.question, facts.answer], 1)
    _, pair, count = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    _, question, asked = np.unique(facts.question, return_inverse=True, return_counts=True)
    share = count[pair] / asked[question]
    weights = share**-power
    mean = np.bincount(question, weights) / asked
    return weights / mean[question]


class Mixture:
    """Several data sets in turn, in fixed shares: what step number n has is a function of n alone.

    Args:
        change: what a step makes of a sample: change(sample, step, name). None: nothing.
    """

    def __init__(self, sets: Sequence[Batches], shares: Sequence[float], change: Change | None = None) -> None:
        self.sets, self.shares, self.change = sets, [share / sum(shares) for share in shares], change
        self.counts = [0] * len(sets)
        self.places: list[tuple[int, int]] = []  # of the batches so far

    def part(self, number: int, place: int = 0, of: int = 1) -> list[Name]:
        """Names of the samples of a step, or of one of the parts that its images are parted into."""
        which, its = self.locate(number)
        return [(which, sample) for sample in self.sets[which].part(its, place, of)]

    def read(self, name: Name, step: int | None = None) -> Encoded:
        """The sample of a name, as a step takes it, if one is named. ValueError if it is broken.

        Called by one thread or another.
        """
        which, sample = name
        entry = self.sets[which].data[sample]
        return entry if step is None or self.change is None else self.change(entry, step, name)

    def words(self) -> Counter[int]:
        """How often each token is learnt in an epoch of each data set that has a share."""
        return sum(
            (its.facts.words for its, share in zip(self.sets, self.shares, strict=True) if share), Counter[int]()
        )

    def locate(self, number: int) -> Name:
        """Which data set step `number` has, and which batch of it: that which lags most behind its share."""
        while len(self.places) <= number:
            drawn = len(self.places) + 1
            lag = [share * drawn - count for share, count in zip(self.shares, self.counts, strict=True)]
            which = lag.index(max(lag))
            self.places.append((which, self.counts[which]))
            self.counts[which] += 1
        return self.places[number]
