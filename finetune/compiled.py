"""Layers compiled while they are trained (torch.compile), each kind once, for batches of any shape."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmlm.block import GatedBlock
from mmlm.model import MultimodalLM
from mmlm.swapped import swapped

MOST = 64  # graphs of one kind of layer: of rows one or several, before and after the first block, ...


class Compiled:
    """What of a model has a backward, compiled: decoder layers from the first block on, and the adapter's.

    Layers of the same kind share what is compiled, as long as they are given no cache: of one each takes its own part.
    The rest of the model, and all that is asked of it beside training, stays as it is. Made after
    `gradient_checkpointing_enable`, if that is called.
    """

    def __init__(self, model: MultimodalLM, backend: str = "inductor") -> None:
        self.forwards: dict[Any, Callable[..., Any]] = {}
        for module in model.recompute.modules:
            forward = torch.compile(module.forward, dynamic=True, backend=backend)
            self.forwards[module] = dense(forward) if isinstance(module, GatedBlock) else forward

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it they are run compiled."""
        with torch._dynamo.config.patch(recompile_limit=MOST), swapped(self.forwards):
            yield


def dense(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward, given masks where it would be given none: they would be graphs of their own."""

    def call(hidden: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees: Tensor | None) -> Tensor:
        sees = torch.ones_like(hidden[..., 0], dtype=torch.bool) if sees is None else sees
        mask = sees.new_ones(*sees.shape, k.shape[2]) if mask is None else mask
        return forward(hidden, k, v, mask, sees)

    return call
