"""A run's folder: what its files are called, and whether a run may start, go on or start over there."""

import shutil
from pathlib import Path
from typing import Any

from finetune.config import NAME, write
from mmlm.names import WEIGHTS

CHECKPOINTS, METRICS, TROUBLE = "checkpoints", "metrics.jsonl", "trouble.jsonl"
LOSS, REPORT, PAGE, TABLE, SAMPLES = SHOWN = ("loss.png", "report.json", "report.html", "scores.md", "samples.html")
SURVEYS = "data"  # a folder: what was found in each data set
RUN = (CHECKPOINTS, METRICS, WEIGHTS)  # files of which any makes a folder a run's


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Can a run be started, resumed or started over in this folder? FileExistsError or ValueError if not."""
    if resume and overwrite:
        raise ValueError("--resume goes on with the run that is there, --overwrite starts it over: give one of them")
    if resume and not has_run(folder):
        raise ValueError(f"{folder}: no run is there to go on with; start one without --resume")
    if has_run(folder):
        if not resume and not overwrite:
            raise FileExistsError(
                f"{folder}: a run is there already; --resume goes on with it, --overwrite starts it over, "
                "--run NAME makes another"
            )
    elif folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {NAME, SURVEYS}):
        raise FileExistsError(f"{folder}: something else is there; --run NAME makes the run in a folder of its own")


def has_run(folder: Path) -> bool:
    """Is there a run in the folder, finished or not?"""
    return any((folder / name).exists() for name in RUN)


def start_folder(config: Any, folder: Path) -> None:
    """Makes the run's folder, removes what another run made, and writes the config."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINTS, SURVEYS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (METRICS, TROUBLE, WEIGHTS, *SHOWN):
        (folder / name).unlink(missing_ok=True)
    write(config, folder)
