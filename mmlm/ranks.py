"""Several processes, one run: who writes, what all of them count, and errors that all of them hear of."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch.nn.parallel import DistributedDataParallel

from mmlm.launched import processes
from mmlm.model import MultimodalLM

Item = TypeVar("Item")
Result = TypeVar("Result")
MEETING = timedelta(minutes=1)  # in which processes meet: a launcher starts those anew that do not
PATIENCE = timedelta(hours=2)  # of processes with each other: the main one looks at the data for all


def meet() -> PartialState:
    """Joins the processes that a launcher started; to be called in each of them, first of all."""
    # Accelerate joins the processes of a machine without a GPU only if it is told that there is none
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=MEETING)
    if state.num_processes > 1:
        torch.distributed.set_timeout(PATIENCE)
    return state


def shares(model: MultimodalLM) -> tuple[int, int]:
    """Among how many samples are parted, and which of them this process is: those that share a decoder are one."""
    state, team = PartialState(), model.decoder.tp_size or 1
    return state.num_processes // team, state.process_index // team


def total(values: Sequence[float], world: int) -> list[float]:
    """Sums over the `world` that samples are parted among, in fp64 where the device has it; every process gets them."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    kind = torch.float32 if state.device.type == "mps" else torch.float64
    summed: torch.Tensor = reduce(torch.tensor(values, dtype=kind, device=state.device), "sum")
    return (summed / (state.num_processes // world)).tolist()


def everyone(items: list[str], world: int) -> list[str]:
    """The items of all of the `world` that samples are parted among, in their order; every process gets them."""
    found: list[list[str]] = gather_object([items])
    return list(chain.from_iterable(found[:: PartialState().num_processes // world]))


def alike(tensors: Iterable[torch.Tensor]) -> None:
    """Gives every process the main one's: what each computed by itself may differ in its last bits on a GPU."""
    if PartialState().num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


def leave_to_each(model: MultimodalLM) -> None:
    """Tells DDP that every process has the frozen weights, and buffers, by itself: none sends them to the others."""
    names = {name for name, _ in model.named_parameters()} - model.trained | {name for name, _ in model.named_buffers()}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(names))


@contextmanager
def main_writes() -> Iterator[bool]:
    """A block in which the main process, to which it says True, writes, and the others wait for it.

    If it could not, the others end, too: none goes on with a run whose other half has ended.
    """
    state, failed = PartialState(), [False]
    try:
        yield state.is_main_process
    except BaseException:  # Ctrl-C, too
        failed = [True]
        raise
    finally:
        if state.num_processes > 1:
            broadcast_object_list(failed)
    if failed[0]:
        raise SystemExit(1)  # the main process says why


def main_first(work: Callable[[], Result]) -> Result:
    """What `work` gives in each process: in the main one first, whose files the others then find."""
    with main_writes() as mine:
        found = [work()] if mine else []
    return found[0] if found else work()


def main_says(work: Callable[[], Result]) -> Result:
    """What `work` gives in the main process, where alone it is called, told to every process."""
    found = list[Result]()
    with main_writes() as mine:
        if mine:
            found.append(work())
    told = [found]
    if PartialState().num_processes > 1:
        broadcast_object_list(told)
    return told[0][0]


def by_shares(work: Callable[[Sequence[Item]], Iterable[Result]], items: Sequence[Item]) -> list[Result]:
    """What `work` gives for all items. It keeps on disk what takes time: each process does that for a share of them,
    which the others then find."""
    state = PartialState()
    if state.num_processes > 1:
        deque(work(items[state.process_index :: state.num_processes]), maxlen=0)
        state.wait_for_everyone()
    return list(work(items))


def check_alone() -> None:
    """ValueError if a launcher started several processes, for what runs in one: each would write into one folder."""
    if processes() != 1:
        raise ValueError(f"{processes()} processes were launched, but this runs in one; launch one")


@contextmanager
def joined() -> Iterator[None]:
    """A block at whose end this process leaves the others in order: some backends abort one that just ends."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            # DeepSpeed's ZeRO-3 keeps gloo's threads alive, and one that lets go of a tensor while Python ends aborts
            time.sleep(0.1)
