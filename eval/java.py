"""METEOR and SPICE, which are Java programs: had through pycocoevalcap where it and Java are.

Denkowski and Lavie 2014, "Meteor Universal"; Anderson et al. 2016, "SPICE" (arXiv:1607.08822). Captions are split by
eval/ptb.py, as pycocoevalcap's own tokenizer would.
"""

import shutil
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eval.intervals import Measured, Numbers, rows_of
from eval.paired import References, paired
from eval.ptb import ptb_tokenize

PACKAGE = "pycocoevalcap"
MODELS = "spice/lib/stanford-corenlp-3.6.0.jar"  # which SPICE fetches when it is first run by itself


def java_how() -> dict[str, str]:
    """How `meteor` and `spice` are had here, or what they lack: "left out: ...". Nothing is downloaded."""
    spec, java = find_spec(PACKAGE), shutil.which("java")
    if not spec or not spec.submodule_search_locations or not java:
        lack = "Java is not installed" if spec else f"{PACKAGE} is not installed: pip install 'mmlm-adapter[coco]'"
        return dict.fromkeys(("meteor", "spice"), f"left out: {lack}")
    how = f"{PACKAGE} {version(PACKAGE)}, Java"
    there = (Path(spec.submodule_search_locations[0]) / MODELS).is_file()
    return {"meteor": how, "spice": how if there else f"left out: no {MODELS}; run {PACKAGE}'s SPICE once"}


def java_metrics(hypotheses: Sequence[str], references: References) -> dict[str, Measured]:
    """`meteor` and `spice` (0..1), those of them that can be had here."""
    how, pairs = java_how(), paired(hypotheses, references)
    split = [(words(said), [words(one) for one in right]) for said, right in pairs]
    found = {}
    if not how["meteor"].startswith("left out"):
        found["meteor"] = Measured(rows_of([meteor().counts(*one) for one in split]), lambda sums: meteor().of(sums))
    if not how["spice"].startswith("left out"):
        found["spice"] = Measured.mean(spice(split))
    return found


def words(caption: str) -> str:
    return " ".join(ptb_tokenize(caption))


class Meteor:
    """The program, running: it counts what captions share, and scores sums of such counts, as those of a corpus."""

    def __init__(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor as Program

        self.program: Any = Program()

    def counts(self, said: str, right: list[str]) -> list[float]:
        """The 23 numbers that it takes of a caption."""
        return [float(count) for count in self.program._stat(said, right).split()]

    def of(self, sums: Numbers) -> float:
        """The score of captions whose counts have these sums."""
        line = f"EVAL ||| {' '.join(map(repr, sums.tolist()))}\n"
        self.program.meteor_p.stdin.write(line.encode())
        self.program.meteor_p.stdin.flush()
        self.program.meteor_p.stdout.readline()  # of the captions, one by one; then of all of them
        return float(self.program.meteor_p.stdout.readline())


@cache
def meteor() -> Meteor:
    """One for all."""
    return Meteor()


def spice(split: Sequence[tuple[str, list[str]]]) -> list[float]:
    """The F-score of each caption."""
    from pycocoevalcap.spice.spice import Spice

    said, right = (dict(enumerate(part)) for part in zip(*split, strict=True))
    _, each = Spice().compute_score(right, {place: [one] for place, one in said.items()})
    return [float(sample["All"]["f"]) for sample in each]
