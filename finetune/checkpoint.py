"""Checkpoints: the adapter, its optimizer and the step, written under a temporary name and renamed."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from finetune.folder import CHECKPOINT


def save(folder: Path, step: int, smooth: float, adapter: nn.Module, optimizer: Any) -> None:
    """Writes what a run needs to go on after `step` steps. The last one is replaced when the new one is whole.

    Args:
        smooth: the smoothed loss.
    """
    draft = folder / f".{CHECKPOINT}.part"
    try:
        parts = {"adapter": adapter.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({"step": step, "loss_smooth": smooth} | parts, draft)
        os.replace(draft, folder / CHECKPOINT)
    except RuntimeError as error:  # torch's word for a disk that is full
        raise OSError(f"{folder / CHECKPOINT}: could not be written ({error}); the one before it is kept") from error
    finally:
        draft.unlink(missing_ok=True)


def load(folder: Path, adapter: nn.Module, optimizer: Any) -> tuple[int, float]:
    """Puts back what `save` wrote, if there is any; returns the steps done and the smoothed loss (without any, zeros).

    ValueError if it is damaged, or of a run with other settings.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, 0.0
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:  # torch's words would advise to load it unsafely
        raise ValueError(f"{path}: damaged; put a whole one there, or start over with --overwrite") from error
    try:
        adapter.load_state_dict(kept["adapter"])
        optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"]), float(kept["loss_smooth"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of this run's settings ({str(error).partition(chr(10))[0]}); "
            "resume with the settings it was made with, or start over with --overwrite"
        ) from error
