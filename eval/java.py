"""METEOR and SPICE, which are Java programs: those that pycocoevalcap has, where it and Java are.

Denkowski and Lavie 2014, "Meteor Universal"; Anderson et al. 2016, "SPICE" (arXiv:1607.08822). Captions are split by
eval/ptb.py, as pycocoevalcap's own tokenizer would.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from subprocess import PIPE, CalledProcessError, Popen
from types import TracebackType

import numpy as np

from eval.intervals import Measured, Numbers, rows_of
from eval.paired import References, paired
from eval.ptb import ptb_tokenize

PACKAGE = "pycocoevalcap"
MODELS = "spice/lib/stanford-corenlp-3.6.0.jar"  # which SPICE fetches when it is first run by itself
LEFT_OUT = "left out: "
_METEOR = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
_OPTIONS = "JDK_JAVA_OPTIONS"  # which Java 8, that knows no such options, does not read
_OPENED = ("lang", "math", "util", "util.concurrent", "net", "text", "io")  # what SPICE's serializer, FST, looks into


def java_how() -> dict[str, str]:
    """How `meteor` and `spice` are had here, or what they lack: "left out: ...". Nothing is downloaded.

    What is there is tried on a caption: a Java that cannot run it is found before a run and not after.
    """
    folder = package()
    if not folder or not shutil.which("java"):
        lack = "Java is not installed" if folder else f"{PACKAGE} is not installed: pip install 'mmlm-adapter[coco]'"
        return dict.fromkeys(("meteor", "spice"), LEFT_OUT + lack)
    if (folder / MODELS).is_file():
        return {name: tried(name) for name in ("meteor", "spice")}
    return {"meteor": tried("meteor"), "spice": f"{LEFT_OUT}no {MODELS}; run {PACKAGE}'s SPICE once"}


def package() -> Path | None:
    """Where pycocoevalcap is."""
    spec = find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def tried(name: str) -> str:
    """How a program is had, or why it does not run here."""
    try:
        if name == "spice":
            spice([("a cat", ["a cat"])])
        else:
            with Meteor() as its:
                its.of(np.array(its.counts("a cat", ["a cat"])))
    except CalledProcessError as error:
        why = f"java ended with exit status {error.returncode}"
    except Exception as error:  # of many kinds: the package's, the disk's
        why = " ".join(str(error).split())
    else:
        return f"{PACKAGE} {version(PACKAGE)}, Java"
    return f"{LEFT_OUT}{name} does not run here ({why})"


def java_metrics(hypotheses: Sequence[str], references: References, how: Mapping[str, str]) -> dict[str, Measured]:
    """`meteor` and `spice` (0..1), those of them that `java_how` does not leave out."""
    pairs = paired(hypotheses, references)
    split = [(words(said), [words(one) for one in right]) for said, right in pairs]
    found = {}
    if not how["meteor"].startswith(LEFT_OUT):
        found["meteor"] = Measured(rows_of([meteor().counts(*one) for one in split]), lambda sums: meteor().of(sums))
    if not how["spice"].startswith(LEFT_OUT):
        found["spice"] = Measured.mean(spice(split))
    return found


def words(caption: str) -> str:
    return " ".join(ptb_tokenize(caption))


class Meteor:
    """The program, running: it counts what captions share, and scores sums of such counts, as those of a corpus."""

    def __init__(self) -> None:
        folder = package()
        assert folder is not None
        self.program = Popen(_METEOR, cwd=folder / "meteor", stdin=PIPE, stdout=PIPE, stderr=PIPE, encoding="utf-8")

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.program.communicate()  # which ends it

    def counts(self, said: str, right: list[str]) -> list[float]:
        """The 23 numbers that it takes of a caption."""
        return [float(count) for count in self.answers("SCORE", *right, said).split()]

    def of(self, sums: Numbers) -> float:
        """The score of captions whose counts have these sums."""
        return float(self.answers("EVAL", " ".join(map(repr, sums.tolist())), lines=2))

    def answers(self, *parts: str, lines: int = 1) -> str:
        """The last line that it answers; of captions' counts, first of one by one. ValueError once it has ended."""
        assert self.program.stdin and self.program.stdout
        try:
            print(*parts, sep=" ||| ", file=self.program.stdin, flush=True)
            said = [self.program.stdout.readline() for _ in range(lines)][-1]
        except BrokenPipeError:
            said = ""
        if not said:
            why = self.program.communicate()[1].strip().partition("\n")[0]
            raise ValueError(f"java ended with exit status {self.program.returncode}{why and ': '}{why}")
        return said


@cache
def meteor() -> Meteor:
    """One for all."""
    return Meteor()


def spice(split: Sequence[tuple[str, list[str]]]) -> list[float]:
    """The F-score of each caption; one that has none, as of two captions that say nothing, counts as 0."""
    from pycocoevalcap.spice.spice import Spice

    said, right = (dict(enumerate(part)) for part in zip(*split, strict=True))
    with opened():
        _, each = Spice().compute_score(right, {place: [one] for place, one in said.items()})
    scores = [float(sample["All"]["f"]) for sample in each]
    return [0.0 if isnan(score) else score for score in scores]


@contextmanager
def opened() -> Iterator[None]:
    """A block in which `java` lets SPICE look into its packages, which Java 16 and later do not by themselves."""
    before = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = " ".join(
        [before or "", *(f"--add-opens=java.base/java.{one}=ALL-UNNAMED" for one in _OPENED)]
    )
    try:
        yield
    finally:
        del os.environ[_OPTIONS]
        if before is not None:
            os.environ[_OPTIONS] = before
