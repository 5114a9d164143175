"""Activation checkpointing: what backward needs of a frozen layer is computed again, not kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. transformers' own is for layers in
training mode, and the frozen decoder's are in eval mode. Hooks run outside of what is computed again, so a gated block
before a layer runs once; what it needs in backward is computed again by itself (`View`).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def again(forward: Any, *args: Any, **kwargs: Any) -> Any:
    """forward(*args, **kwargs), computed again in backward if there is to be one. It draws nothing at random."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class Recompute:
    """Layers whose forward is computed again in backward, while `on`."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.layers = list(layers)
        self.before: list[Any] = []

    @property
    def on(self) -> bool:
        return bool(self.before)

    def enable(self) -> None:
        """From now on the layers' forward is wrapped, each on its own instance: their classes stay what they are."""
        if not self.on:
            self.before = [vars(layer).get("forward") for layer in self.layers]  # a hook of accelerate's, if any
            for layer in self.layers:
                layer.forward = Again(layer.forward)

    def disable(self) -> None:
        """The layers' forward is again what it was."""
        for layer, forward in zip(self.layers, self.before, strict=False):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
        self.before = []


class Again:
    """A layer's forward through `again`."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return again(self.forward, *args, **kwargs)
