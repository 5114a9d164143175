"""Checkpoints: what is trained, its optimizer's state and how far the run has come. Frozen weights are not in them.

    checkpoints/step-00000100.5f3a…e1.pt      a file is written under another name, then renamed to this one: its step,
                                              and a hash of its bytes

Weights that are sharded over processes are gathered, and sharded again as the run that goes on shards them: a
checkpoint of two processes is good for one, or for eight. Nothing random is in it: what is drawn at a step follows from
the seed and the step.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune.folder import CHECKPOINTS
from finetune.zero import Optimizer, shape_of, unparted
from mmlm.decoder import gathered
from mmlm.model import MultimodalLM
from mmlm.ranks import main_writes
from mmlm.store import misfit

PATTERN = re.compile(r"step-(\d{8,})\.([0-9a-f]{32})\.pt")
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    smooth: float | None = None
    """The smoothed loss."""
    skipped: int = 0
    """Steps that changed nothing, since their loss or gradient was not to be trusted."""
    seen: int = 0
    """Samples of all steps."""
    broken: int = 0
    """Those of them that could not be read."""
    scores: dict[str, float] = field(default_factory=dict)
    """What was found when it was scored last."""
    best_scores: dict[str, float] = field(default_factory=dict)
    """And when it was best."""
    best_step: int = 0
    """The step that was."""

    @property
    def best(self) -> float | None:
        """The best score so far; more is better."""
        return self.best_scores.get("score")


def save(folder: Path, progress: Progress, model: MultimodalLM, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Writes a checkpoint into the run's folder; of older ones the last `keep - 1` stay, and the best.

    To be called in every process: the main one writes. OSError, in all of them, if it cannot; the ones before are kept.
    """
    state = {"progress": asdict(progress), "trained": whole(model.saved()), "optimizer": moments(model, optimizer)}
    with main_writes() as mine:
        if mine:
            write(folder / CHECKPOINTS, progress.step, state)
            prune(folder / CHECKPOINTS, keep, progress.best_step)


def load(folder: Path, model: MultimodalLM, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts back what the last whole checkpoint has, if there is any; returns how far it had come.

    A damaged one is told of in the log, and the one before it is taken. ValueError if none is whole, or it is of a run
    with other settings.
    """
    if not (found := checkpoints(folder)):
        return Progress()
    for path in found:
        if (kept := read(path)) is None:
            logger.warning("%s: damaged, its bytes are not those that were written; going back to the one before", path)
            continue
        try:
            fill(model.saved(), kept["trained"])
            if isinstance(optimizer, Optimizer):
                optimizer.refresh()
            fill_moments(model, optimizer, kept["optimizer"])
            return Progress(**{entry.name: kept["progress"][entry.name] for entry in fields(Progress)})
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: not a checkpoint of this run's settings ({error}); resume with the settings it was made "
                "with, or start over with --overwrite"
            ) from error
    raise ValueError(f"{found[0].parent}: every checkpoint is damaged; put a whole one there, or --overwrite")


def load_step(folder: Path, step: int, model: MultimodalLM) -> None:
    """Puts back the weights that a step's checkpoint has. ValueError if it is damaged."""
    for path in checkpoints(folder):
        if step_of(path) == step and (kept := read(path)) is not None:
            fill(model.saved(), kept["trained"])
            return
    raise ValueError(f"{folder / CHECKPOINTS}: the best, of step {step}, is missing or damaged; take score.take: last")


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run, the last first."""
    names = [path for path in (folder / CHECKPOINTS).glob("step-*.pt") if PATTERN.fullmatch(path.name)]
    return sorted(names, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint is named by."""
    return int(path.name.split(".")[0].removeprefix("step-"))


def prune(folder: Path, keep: int, best: int) -> None:
    """Removes all but the last `keep` checkpoints and that of the step `best`; and drafts that a kill left."""
    for path in checkpoints(folder.parent)[keep:]:
        if step_of(path) != best:
            path.unlink(missing_ok=True)
    for draft in folder.glob(".step-*.part"):
        draft.unlink(missing_ok=True)


# -- files ------------------------------------------------------------------------------------------------------------


class Hashed:
    """A file that is written, and the hash of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint under a temporary name, makes sure that it is on the disk, and renames it."""
    folder.mkdir(exist_ok=True)
    draft = folder / f".step-{step:08}.part"
    try:
        with draft.open("wb") as file:
            hashed = Hashed(file)
            torch.save(state, hashed)  # type: ignore[arg-type]  # all that it asks of a file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, folder / f"step-{step:08}.{hashed.digest.hexdigest()}.pt")
    except (RuntimeError, OSError) as error:  # the first is torch's word for a disk that is full
        raise OSError(
            f"{folder}: the checkpoint of step {step} could not be written ({error}); those before it are kept: mend "
            "that, and go on with --resume"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None if its bytes are not those that were written."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    match = PATTERN.fullmatch(path.name)
    if match is None or digest != match[2]:
        return None
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return kept
    except (RuntimeError, EOFError, UnpicklingError):  # named by the hash of its bytes, and yet no file of torch
        return None


# -- weights ----------------------------------------------------------------------------------------------------------


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, shards of which may lie in several processes -> copies of the whole ones, in the main process alone.

    To be called in every process; what others than the main one get is empty.
    """
    found, mine = {}, PartialState().is_main_process
    for name, tensor in tensors.items():
        with unparted([tensor]):
            one = gathered(tensor).detach()
            if mine:  # a copy: as a view of a larger one it would be written with all of that
                found[name] = one.to("cpu", copy=True)
    return found


def like(value: Tensor, place: Tensor) -> Tensor:
    """A whole tensor -> on the device of another, and sharded as that is."""
    if isinstance(place, DTensor):
        return distribute_tensor(value.to(place.device), place.device_mesh, place.placements)
    return value.to(place.device)


@torch.no_grad()
def fill(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values to their places. ValueError if they are others, or of other shapes."""
    if why := misfit(values, {name: torch.empty(shape_of(place), device="meta") for name, place in places.items()}):
        raise ValueError(why)
    for name, place in places.items():
        with unparted([place]):
            place.copy_(like(values[name], place))


def learning(model: MultimodalLM) -> Iterator[tuple[str, Tensor]]:
    """What is trained, by name."""
    for name, parameter in model.named_parameters():
        if name in model.trained:
            yield name, parameter


def moments(model: MultimodalLM, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state of each parameter, by its name."""
    return {name: whole(optimizer.state[p]) for name, p in learning(model) if p in optimizer.state}


def fill_moments(
    model: MultimodalLM, optimizer: torch.optim.Optimizer, kept: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Puts back what `moments` gave. ValueError for that of other parameters."""
    known = dict(learning(model))
    if unknown := sorted(kept.keys() - known.keys()):
        raise ValueError(f"its optimizer has {unknown[0]}, which is not trained")
    for name, state in kept.items():
        place = known[name]
        if wrong := [key for key, value in state.items() if value.dim() and value.shape != shape_of(place)]:
            raise ValueError(f"its optimizer has {wrong[0]} of another shape for {name}")
        optimizer.state[place] = {
            key: like(value, place) if value.dim() else value.to(place.device) for key, value in state.items()
        }
