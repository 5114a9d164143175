"""Several processes, one run: who writes, what all of them count, and errors that all of them hear of."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce


def total(values: Sequence[float]) -> list[float]:
    """Sums over all processes, in fp64 where the device has it; every process gets them."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    kind = torch.float32 if state.device.type == "mps" else torch.float64
    summed: torch.Tensor = reduce(torch.tensor(values, dtype=kind, device=state.device), "sum")
    return summed.tolist()


def everyone(items: list[str]) -> list[str]:
    """The items of all processes, in their order; every process gets them."""
    found: list[str] = gather_object(items)
    return found


@contextmanager
def main_writes() -> Iterator[bool]:
    """A block in which the main process, to which it says True, writes, and the others wait for it.

    If it could not, the others end, too: none goes on with a run whose other half has ended.
    """
    state, failed = PartialState(), [False]
    try:
        yield state.is_main_process
    except (OSError, ValueError):
        failed = [True]
        raise
    finally:
        if state.num_processes > 1:
            broadcast_object_list(failed)
    if failed[0]:
        raise SystemExit(1)  # the main process says why


def check_alone() -> None:
    """ValueError if a launcher started several processes, for what runs in one: each would write into one folder."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(f"{processes} processes were launched, but this runs in one; launch one")
