"""Weights: is a product made of them alone, and are they still what they were?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 256  # values of each weight by which a write is noticed that torch does not count


def is_plain(product: nn.Module) -> bool:
    """Is it a product with its weight and no more? Not so with LoRA or hooks around it, or its weight elsewhere."""
    weight: Any = getattr(product, "weight", None)
    here = type(weight) in (Tensor, nn.Parameter) and weight.layout is torch.strided  # quantized: of other types
    if type(product) is not nn.Linear or not here:
        return False
    return weight.shape == (product.out_features, product.in_features) and not is_hooked(product)


def is_hooked(module: nn.Module) -> bool:
    """Does something wait for its call, or for the gradients of it?"""
    forward = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


class State:
    """By what it is noticed that weights are no longer those that something was made of.

    Where they lie, how often torch saw them written, and some of their values: torch does not count what is written
    through `.data`, as PEFT does when it merges.
    """

    def __init__(self, weights: Sequence[Tensor], *more: Any) -> None:
        writes = [0 if weight.is_inference() else weight._version for weight in weights]
        self.counts = more, [(w.data_ptr(), w.dtype, w.device, n) for w, n in zip(weights, writes, strict=True)]
        self.values = torch.cat([w.detach().flatten()[:: stride(w)].float() for w in weights])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.counts == other.counts and torch.equal(self.values, other.values)


def stride(weight: Tensor) -> int:
    """How far the samples of a weight lie from each other: spread over its columns as over its rows."""
    across, step = weight.shape[-1] if weight.dim() and weight.numel() else 1, weight.numel() // SAMPLES
    return max(1, step if step < across else step - step % across + (int(across * 0.618) | 1))
