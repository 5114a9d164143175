"""Weights: is a product made of them alone, and are they still what they were?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 64  # values of each weight that tell of writes that torch does not count: PEFT's, averages', of all values


def is_plain(product: nn.Module) -> bool:
    """Is it a product with its weight and no more? Not so with LoRA or hooks around it, or its weight elsewhere."""
    whole = type(product) is nn.Linear and product.weight.shape == (product.out_features, product.in_features)
    here = whole and type(product.weight) in (Tensor, nn.Parameter)  # quantized ones are of other types
    return here and not is_hooked(product)


def is_hooked(module: nn.Module) -> bool:
    """Does something wait for its call, or for the gradients of it?"""
    forward = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


class State:
    """By what it is noticed that weights are no longer those that something was made of.

    Where they lie, how often torch saw them written, and some of their values: writes through `.data` are not counted.
    """

    def __init__(self, weights: Sequence[Tensor], *more: Any) -> None:
        writes = [0 if weight.is_inference() else weight._version for weight in weights]
        self.counts = more, [(w.data_ptr(), w.dtype, w.device, n) for w, n in zip(weights, writes, strict=True)]
        self.values = torch.cat([w.detach().flatten()[:: 1 + w.numel() // SAMPLES].float() for w in weights])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.counts == other.counts and torch.equal(self.values, other.values)
