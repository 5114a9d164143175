"""What a run is asked to do, and whether its folder has one that was asked the same."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark
from eval.how import CLIP, How
from mmlm.data.source import Source
from mmlm.names import RUNS
from vision.files import write_json

SETTINGS, PARTS = "settings.json", "parts"
PREDICTIONS, SCORES, REPORT = "predictions.jsonl", "scores.json", "report.html"
PLOT = "best-of.png"
SHOTS = ("shots", "shots_from", "shots_split", "shots_by")
RANDOM, SIMILAR = "random", "similar"  # how examples are chosen, unless by a CLIP


@dataclass
class EvalConfig(Source, How):
    """One run of `mmlm eval`. ValueError for data by a name that another task measures, and for what cannot be."""

    task: str
    """ "caption" or "vqa"."""
    model: str
    """Saved adapter: folder or hub id."""
    data: str
    """As `open_data` takes it. Of data by name, what is not said of split and prompt is what is usual."""
    prompt: str | None = None
    """What asks; None: for captions the adapter's own `caption_prompt`, for questions "{question}"."""
    limit: int = 0
    """Samples that are drawn; 0: all."""
    seed: int = 0
    """Of what is drawn."""
    max_new_tokens: int = 32
    """Of an answer, at the most."""
    batch: int = 96
    """Samples that are asked together; with examples fewer, so that as many images are. Nor are more answers drawn, or
    options read, at once."""
    clip: str | None = None
    """The model of CLIPScore, as "open_clip:ViT-B-32/openai"; None: captions get no such score."""
    shots: int = 0
    """Examples that are shown before each sample."""
    shots_from: str | None = None
    """Data that examples are taken from; None: the run's own, of other images than the sample's."""
    shots_split: str | None = None
    """Of that data; None: of data by name what is usual, else the run's split where it is the run's own."""
    shots_by: str = RANDOM
    """How they are chosen: "random"; "similar", by the model's own features; "open_clip:MODEL/TAG", by that CLIP's."""

    def __post_init__(self) -> None:
        self.check_how()
        if known := benchmark(self.data, self.task):
            self.split = known[1].split if self.split is None else self.split
            self.prompt = known[1].prompt if self.prompt is None else self.prompt
        if self.shots and (known := benchmark(self.shots_from or self.data, self.task)):
            self.shots_split = known[1].shots if self.shots_split is None else self.shots_split
        if self.shots < 0:
            raise ValueError(f"shots={self.shots} (--shots): takes a whole number from 0 on")
        if self.shots_by not in (RANDOM, SIMILAR) and not self.shots_by.startswith(CLIP):
            raise ValueError(f"shots_by={self.shots_by!r} (--shots-by): takes {RANDOM}, {SIMILAR} or {CLIP}MODEL/TAG")
        for name, usual in zip(SHOTS[1:], (None, None, RANDOM), strict=True):
            if not self.shots and (its := getattr(self, name)) != usual:
                raise ValueError(
                    f"{name}={its!r} (--{name.replace('_', '-')}) is of examples, and none are shown: give shots "
                    "(--shots), too"
                )

    @property
    def examples(self) -> "EvalConfig":
        """What reads all samples that examples may be."""
        if self.shots_from is None or self.shots_from == self.data:
            return replace(self, split=self.shots_split or self.split, limit=0, rank=None, choices=())
        looked_at: dict[str, Any] = dict.fromkeys(("format", "annotations", "subset"))  # those said are of DATA's
        return replace(self, data=self.shots_from, split=self.shots_split, limit=0, rank=None, choices=(), **looked_at)

    @property
    def together(self) -> int:
        """Samples that are asked together."""
        return max(1, self.batch // (1 + self.shots))

    @property
    def folder(self) -> Path:
        """Where the run is kept unless its user says otherwise."""
        known = benchmark(self.data, self.task)
        data = known[0] if known else Path(self.data).name.partition(".")[0]
        words = [self.task, Path(self.model).name, data, self.subset, self.split]
        if self.shots:
            words += [f"{self.shots}-shots", self.shots_by if self.shots_by != RANDOM else ""]
        words.append(self.called)
        return Path(RUNS, "eval", "-".join(re.sub(r"[^\w-]+", "", word) for word in words if word))


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Can a run be started, resumed or started over in this folder? FileExistsError or ValueError if not."""
    there = (folder / SETTINGS).exists()
    if resume and overwrite:
        raise ValueError("--resume goes on with the run that is there, --overwrite starts it over: give one of them")
    if resume and not there:
        raise ValueError(f"{folder}: no run is there to go on with; start one without --resume")
    if there and not resume and not overwrite:
        raise FileExistsError(
            f"{folder}: a run is there already; --resume goes on with it, --overwrite starts it over, --out FOLDER "
            "makes another"
        )
    if not there and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: something else is there; --out FOLDER makes the run in a folder of its own")


def start(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Begins a run in the folder, without what another left there; or sees that the one there was asked the same.

    ValueError, naming the first field that is another, if it was not.
    """
    if resume:
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        for name, value in settings.items():
            if (old := before.get(name)) != value:
                raise ValueError(
                    f"{folder}: {name} was {old!r} when its run began, and is {value!r} now; resume with what it was, "
                    "start over with --overwrite, or make another run with --out FOLDER"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SCORES, REPORT, PREDICTIONS, PLOT):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    write_json(folder / SETTINGS, settings)  # the last: a kill before leaves the run that was there, to be resumed
