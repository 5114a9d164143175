"""Modules whose forward is another one for a while, on their instances: classes stay what they are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def swapped(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it each module has the forward that is given for it; afterwards its own, or what accelerate hooked."""
    own: dict[Any, Any] = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, its in own.items():
            del module.forward
            if its is not None:
                module.forward = its
