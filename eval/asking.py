"""What each sample of a run is asked with: its own images, those of another, none; and the examples before it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest

from eval.known import Keys, Known
from eval.parts import Batch
from eval.run import alike, batches
from eval.scores import WAYS
from eval.settings import RANDOM
from eval.shots import Chooser, few, others
from eval.tasks import blind, right
from eval.together import Together
from mmlm.data import Sample
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.samples import asked
from vision.features import FeatureCache


@dataclass(frozen=True)
class Shown:
    """A sample as it is asked in one way."""

    sample: Sample
    """With the examples, and with the images that are shown."""
    keys: Keys
    """Of these images, the examples' first."""
    written: tuple[str, ...]
    """What is written in them."""
    text: Marked


@dataclass
class Asking:
    """The samples of a run, and how each is asked."""

    samples: list[Sample] = field(default_factory=list)
    shots: list[list[Sample]] = field(default_factory=list)
    """The examples before each."""
    ways: dict[str, list[Shown]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def plan(self, cache: FeatureCache, size: int) -> list[Batch]:
        """Who is asked together. Of those that are asked the very same only the first is."""
        ways, kinds = [], [sample.kind for sample in self.samples]
        for way, its in self.ways.items():
            rows = list(dict.fromkeys(self.firsts(way)))
            found = batches(cache, rows, kinds, [one.keys for one in its], [one.text for one in its], size)
            ways.append([(way, tuple(batch)) for batch in found])
        return [batch for group in zip_longest(*ways) for batch in group if batch]

    def firsts(self, way: str) -> list[int]:
        """For each sample the first that is asked the same."""
        its = self.ways[way]
        return alike([one.keys for one in its], [one.text for one in its], [sample.choices for sample in self.samples])

    def together(self, way: str, rows: Sequence[int], seed: int) -> Together:
        """A batch, as it is asked; what is drawn for it follows from the seed and from what it is of."""
        drawn = hashlib.blake2b(repr((seed, way, rows)).encode(), digest_size=4).digest()
        its = [self.ways[way][row] for row in rows]
        before = [sum(len(one.images) for one in self.shots[row]) for row in rows]
        return Together(
            [one.sample for one in its],
            [one.sample.images[count:] for one, count in zip(its, before, strict=True)],
            [one.keys for one in its],
            [one.written for one in its],
            [one.text for one in its],
            int.from_bytes(drawn),
        )

    def digest(self) -> str:
        """A hash of all that the model is shown, and of what its answers are scored against."""
        found = hashlib.blake2b(digest_size=16)
        for row, sample in enumerate(self.samples):
            its = [shown[row] for shown in self.ways.values()]
            shown = [[one.keys, one.text.ids, one.text.index] for one in its]
            found.update(json.dumps([sample.id, sample.kind, right(sample), sample.choices, shown]).encode())
        return found.hexdigest()


def prepare(
    model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample], examples: Sequence[Sample], choose: Chooser
) -> tuple[Asking, list[str]]:
    """What each sample is asked with; and why others cannot be asked."""
    known, broken, kept = Known(model, cache), list[str](), list[Sample]()
    known.add(samples)
    for sample in samples:
        if error := known.error(sample):
            broken.append(f"sample {sample.id!r}: {error}")
        elif choose.looks and not sample.images:
            broken.append(f"sample {sample.id!r}: no image to find similar ones by; take examples --shots-by {RANDOM}")
        else:
            kept.append(sample)
    shots = choose(known, kept, examples)
    known.read([*kept, *chain.from_iterable(shots)])

    def shown(whole: Sample, text: Marked | None = None) -> Shown:
        keys, written = known.keys(whole), known.written(whole)
        return Shown(whole, keys, written, text or asked(model, whole, written=written))

    its = Asking()
    for sample, before in zip(kept, shots, strict=True):
        try:
            true = shown(few(model.config, before, sample))
            none = shown(few(model.config, map(blind, before), blind(sample)))
        except ValueError as error:
            broken.append(str(error))
            continue
        its.samples.append(sample)
        its.shots.append(before)
        its.ways["true"].append(true)
        its.ways["blind"].append(none)
    own = [known.keys(sample) for sample in its.samples]
    images = {keys: sample.images for keys, sample in zip(own, its.samples, strict=True)}
    taken = [list(chain.from_iterable(map(known.keys, before))) for before in its.shots]
    for row, keys in enumerate(others(own, taken)):
        whole = few(model.config, its.shots[row], replace(its.samples[row], images=images[keys]))
        # what is asked is told by the images only if the model reads them
        same = None if model.processor.reader is not None else its.ways["true"][row].text
        its.ways["shuffled"].append(shown(whole, same))
    return its, broken
