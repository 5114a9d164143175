"""One look at every row before the first step: which can be learnt from, how long they are, what they show.

No pixel is decoded: of an image file the header is read. What is found is kept in the run's folder, so that a run that
goes on plans the same batches, and every process of it.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from finetune.batches import Facts
from finetune.encoded import check_learnt
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.samples import asked, identity
from vision.ahead import ahead
from vision.files import whole_file
from vision.images import image_size, opened
from vision.tiles import plan_tiles

Size = tuple[int, int]
"""(width, height) in pixels."""

NUMBERS = ("group", "question", "answer", "size", "length")  # of Facts


@dataclass(frozen=True)
class Survey:
    """What was found in a data set."""

    rows: NDArray[np.int64]
    """Numbers of the rows that can be learnt from, in order."""
    facts: Facts
    """Of those."""
    broken: list[str]
    """Why the others cannot."""


@dataclass(frozen=True)
class Found:
    """What was found in a row: hashes of its images, of its question and its answer; sizes."""

    group: int
    question: int
    answer: int
    size: int
    length: int


def survey(model: MultimodalLM, rows: Rows, longest: int, say: str) -> Survey:
    """Looks at every row, with a progress bar.

    Args:
        longest: tokens of a sample at the most; longer ones are left out.

    ValueError if no row is left.
    """

    def look(number: int) -> tuple[Found, list[int]] | str:
        try:
            return find(model, rows, number, longest)
        except ValueError as error:
            return str(error)

    words, found = Counter[int](), list[Found | str]()
    for one in tqdm(ahead(look, range(len(rows)), alone=False), total=len(rows), desc=say, unit="row"):
        if isinstance(one, tuple):
            words.update(one[1])
        found.append(one[0] if isinstance(one, tuple) else one)
    kept = [(number, one) for number, one in enumerate(found) if isinstance(one, Found)]
    broken = [one for one in found if isinstance(one, str)]
    if not kept:
        raise ValueError(f"{rows.name}: none of its {len(rows)} rows can be learnt from; the first: {broken[0]}")
    facts = Facts(
        np.unique(np.array([one.group for _, one in kept]), return_inverse=True)[1],
        np.array([one.question for _, one in kept]),
        np.array([one.answer for _, one in kept]),
        np.array([one.size for _, one in kept]),
        np.array([one.length for _, one in kept]),
        words,
    )
    return Survey(np.array([number for number, _ in kept]), facts, broken)


def learnable(model: MultimodalLM, rows: Rows, number: int, longest: int) -> tuple[Sample, Marked, list[Size]]:
    """A row's sample, its tokens, and the sizes of its images. ValueError, naming it, if it cannot be learnt from."""
    sample: Sample = rows[number]
    try:
        text = asked(model, sample, answered=True)
        check_learnt(sample, text)
        if len(text.ids) > longest:
            raise ValueError(f"{len(text.ids)} tokens, more than --longest {longest}; raise that, or shorten it")
        sizes = [image_size(opened(image)) for image in sample.images]
    except ValueError as error:
        raise ValueError(rows.blame(number, error)) from error
    return sample, text, sizes


def find(model: MultimodalLM, rows: Rows, number: int, longest: int) -> tuple[Found, list[int]]:
    """What is in a row, and the tokens that are learnt. ValueError, naming it, if it cannot be learnt from."""
    sample, text, sizes = learnable(model, rows, number, longest)
    # a text alone is shown by itself
    shown = hashed(repr([identity(image) for image in sample.images] or number))
    size = sum(plan_tiles(*size, model.vision.detail).embeddings for size in sizes)
    return Found(shown, hashed(sample.question), hashed(sample.answer), size, len(text.ids)), text.taught


def hashed(words: str) -> int:
    """A number for the words, the same in every process."""
    return int.from_bytes(hashlib.blake2b(words.encode(errors="replace"), digest_size=8).digest(), "big", signed=True)


def keep(found: Survey, path: Path) -> None:
    """Writes what was found."""
    facts = found.facts
    words = np.array(sorted(facts.words.items()), dtype=np.int64).reshape(-1, 2)
    broken = np.array(json.dumps(found.broken))
    numbers = {name: getattr(facts, name) for name in NUMBERS}
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, rows=found.rows, words=words, broken=broken, **numbers)


def kept(path: Path) -> Survey:
    """What `keep` wrote."""
    with np.load(path) as found:
        numbers = {name: found[name] for name in NUMBERS}
        words = Counter({int(word): int(count) for word, count in found["words"]})
        return Survey(found["rows"], Facts(**numbers, words=words), json.loads(str(found["broken"])))
