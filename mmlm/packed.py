"""The output embedding of a frozen decoder on a CPU, laid out once as its products read it fastest.

It is a third of a small decoder's weights, and several rows at once take torch's own product 1.4 to 2.5 times as long
as oneDNN's of packed weights (32,000 x 512: 7.0 and 2.8 ms for 8 rows in fp32; one row takes as long either way). The
other products of a decoder are narrower, and hardly gain. The sums are those of the other product to rounding, so only
`generate` takes it, and only with images: a forward's logits, and what is generated without an image, are the base
decoder's, bit for bit.

torch's operators for it are private: where they are missing, or say other than they should, nothing is packed. The
packed weights stand beside the plain ones, which other products and the embedding of the input need: a copy more.

N rows, V vocabulary, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from mmlm.block import State, is_plain

SMALL = 2**20  # weights of a product that gains nothing
FEW, MANY = 4, 64  # rows from and to which it is the faster

_PACKING: ContextVar["dict[Packed, Tensor] | None"] = ContextVar("mmlm_packing", default=None)


@contextmanager
def packing(on: bool = True) -> Iterator[None]:
    """Within it, in this thread, packed output embeddings are used, if `on`; their weights stay what they are."""
    token = _PACKING.set({} if on else None)
    try:
        yield
    finally:
        _PACKING.reset(token)


class Packed:
    """The forward of an output embedding: its own, or within `packing` that of its packed weights.

    They are packed when they are first of use, and again in a later `packing` if they are no longer what was packed.
    """

    def __init__(self, product: nn.Linear) -> None:
        self.product = product
        self.plain: Callable[[Tensor], Tensor] = product.forward
        self.kept: tuple[State, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not what is packed, which follows from it."""
        return {**vars(self), "kept": None}

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., V]."""
        looked_at = None if torch.compiler.is_compiling() else _PACKING.get()
        if looked_at is None or not self.pays(x):
            return self.plain(x)
        if self not in looked_at:  # which takes as long as a twentieth of the product
            looked_at[self] = self.packed()
        return multiply(x, looked_at[self], self.product.bias)

    def pays(self, x: Tensor) -> bool:
        """Is the packed product the faster for these rows, and to be had?"""
        weight = self.product.weight
        if weight.device.type != "cpu":
            self.kept = None
        fits = is_plain(self.product) and weight.device.type == "cpu" and weight.dtype == x.dtype
        large = weight.numel() >= SMALL and FEW <= x.numel() // x.shape[-1] <= MANY
        return fits and large and not weight.requires_grad and able(x.dtype)

    def packed(self) -> Tensor:
        """The packed weights."""
        kept, state = self.kept, State([self.product.weight])  # another thread may write self.kept at any moment
        if kept is None or kept[0] != state:
            kept = self.kept = None  # its memory before that of the new one
            kept = self.kept = state, pack(self.product.weight)
        return kept[1]


def pack_output(decoder: PreTrainedModel) -> None:
    """Gives a decoder's output embedding, if it is a plain product, a forward that `packing` makes faster."""
    output: Any = decoder.get_output_embeddings()
    if type(output) is nn.Linear and "forward" not in vars(output):
        vars(output)["forward"] = Packed(output)


def pack(weight: Tensor) -> Tensor:
    """Weight [V, D] as oneDNN reads it, opaque."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., D] times packed weights -> [..., V]."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return made


@cache
def able(dtype: torch.dtype) -> bool:
    """Can this machine, and this torch, multiply packed weights of a dtype?"""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    draws = torch.Generator("cpu").manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=draws, device="cpu").to(dtype) for rows in (FEW, 96))
    try:
        made = multiply(x, pack(weight), None)
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return False
    return made.dtype == dtype and torch.allclose(made.float(), linear(x, weight).float(), rtol=0.02, atol=0.05)
