"""Activation checkpointing: what backward needs of a frozen layer is computed again, not kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. transformers' own is for layers in
training mode, and the frozen decoder's are in eval mode. Hooks run outside of what is computed again, so a gated block
before a layer runs once; what it needs in backward is computed again by itself.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recompute:
    """Modules whose forward is computed again in backward, while `on`: layers of the decoder, and of the adapter."""

    def __init__(self, layers: Iterable[nn.Module], adapter: Iterable[nn.Module]) -> None:
        self.layers, self.adapter = list(layers), list(adapter)
        self.before: list[Any] = []

    @property
    def modules(self) -> list[nn.Module]:
        return [*self.layers, *self.adapter]

    @property
    def on(self) -> bool:
        return bool(self.before)

    def enable(self, every: int = 1) -> None:
        """From now on the forward of every so many-th layer, and of all in the adapter, is wrapped.

        It is so on its instance: classes stay what they are.
        """
        if not self.on:
            self.before = [vars(module).get("forward") for module in self.modules]  # a hook of accelerate's, if any
            for module in (*self.layers[::every], *self.adapter):
                module.forward = Again(module.forward, draws(module))

    def disable(self) -> None:
        """Each forward is again what it was."""
        for module, forward in zip(self.modules, self.before, strict=False):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward
        self.before = []


class Again:
    """A forward that is computed again in backward, if there is to be one.

    Args:
        draws: does it draw at random? Then it draws the same again.
    """

    def __init__(self, forward: Any, draws: bool) -> None:
        self.forward, self.draws = forward, draws

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=self.draws, **kwargs)


def draws(module: nn.Module) -> bool:
    """Does it have dropout, as LoRA may?"""
    return any(isinstance(its, nn.Dropout) and its.p > 0 for its in module.modules())
