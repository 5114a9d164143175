"""Layers compiled while they are trained (torch.compile), each kind once, for batches of any shape."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mmlm.model import MultimodalLM


class Compiled:
    """What of a model has a backward, compiled: decoder layers from the first block on, and the adapter's.

    Layers of the same kind share what is compiled. The rest of the model, and all that is asked of it beside training,
    stays as it is. Made after `gradient_checkpointing_enable`, if that is called.
    """

    def __init__(self, model: MultimodalLM, backend: str = "inductor") -> None:
        self.forwards = {
            module: torch.compile(module.forward, dynamic=True, backend=backend) for module in model.recompute.modules
        }

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it they are run compiled."""
        own: dict[Any, Any] = {module: vars(module).get("forward") for module in self.forwards}
        for module, forward in self.forwards.items():
            module.forward = forward
        try:
            yield
        finally:
            for module, its in own.items():
                del module.forward
                if its is not None:
                    module.forward = its
