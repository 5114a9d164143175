"""What a run is asked to do, and whether its folder has one that was asked the same."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark
from mmlm.data.source import Source
from mmlm.names import RUNS
from vision.files import write_json

SETTINGS, PARTS = "settings.json", "parts"
PREDICTIONS, SCORES, REPORT = "predictions.jsonl", "scores.json", "report.html"


@dataclass
class EvalConfig(Source):
    """One run of `mmlm eval`. ValueError for data by a name that another task measures."""

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
    """Samples that are asked together."""
    clip: str | None = None
    """The model of CLIPScore, as "open_clip:ViT-B-32/openai"; None: captions get no such score."""

    def __post_init__(self) -> None:
        if known := benchmark(self.data, self.task):
            self.split = known[1].split if self.split is None else self.split
            self.prompt = known[1].prompt if self.prompt is None else self.prompt

    @property
    def folder(self) -> Path:
        """Where the run is kept unless its user says otherwise."""
        known = benchmark(self.data, self.task)
        data = known[0] if known else Path(self.data).name.partition(".")[0]
        words = (self.task, Path(self.model).name, data, self.subset, self.split)
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
    for name in (SCORES, REPORT, PREDICTIONS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    write_json(folder / SETTINGS, settings)  # the last: a kill before leaves the run that was there, to be resumed
