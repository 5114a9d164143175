"""Frozen weights on a CPU, laid out once as oneDNN's products of a few rows read them fastest.

A token of several rows is a few rows, and torch's own product then takes up to twice as long as it takes to read its
weights. Of 8 rows a packed product of 512 x 512 takes 1.1 (fp32) or 0.7 (bf16) of the time, of 1,376 x 512 0.9 or 0.66,
of 2,048 x 2,048 0.6 or 0.8, of 32,000 x 512 0.46. One row takes as long either way, and what is narrow gains nothing.

Sums are those of the other product to rounding. So of the decoder only `generate` takes it, and only with images: a
forward's logits, and what is generated without an image, are the base decoder's, bit for bit; outside of it the
decoder's modules are as they were loaded. What runs for tokens that see an image alone, as a gated block, may always
have it.

torch's operators for it are private: where they are missing, or say other than they should, nothing is packed. Packed
weights stand beside the plain ones, which other products need: a copy more, of a decoder of at most an eighth of the
machine's memory.

N rows, V features that come out, D that go in.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from mmlm.weights import State, is_plain

LEAST = {torch.float32: 2**19, torch.bfloat16: 2**17}  # weights of a product from which it is the faster
FEW = {torch.float32: 4, torch.bfloat16: 2}  # rows from which it is
MANY = 64  # rows up to which it is
SHARE = 8  # the part of the machine's memory that one decoder's packed weights may take

_PACKING: ContextVar["dict[Packed, Tensor | None] | None"] = ContextVar("mmlm_packing", default=None)
_ATTACHING = Lock()


class Packing:
    """A decoder's products, output embedding first, that have another forward while something is generated.

    Args:
        layers: the decoder's, of which each product counts.
    """

    def __init__(self, decoder: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
        left = psutil.virtual_memory().total // SHARE
        self.products: list[Packed] = []
        self.inside = 0  # generations, in all threads
        output: Any = decoder.get_output_embeddings()
        for product in dict.fromkeys([output, *(product for layer in layers for product in layer.modules())]):
            if type(product) is nn.Linear and product.weight.nbytes <= left:
                left -= product.weight.nbytes
                self.products.append(Packed(product))

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled."""
        return {**vars(self), "inside": 0}

    @contextmanager
    def __call__(self, on: bool = True) -> Iterator[None]:
        """Within it, in this thread, packed weights are used, if `on`; the weights stay what they are."""
        self.attach(1)
        token = _PACKING.set({} if on else None)
        try:
            yield
        finally:
            _PACKING.reset(token)
            self.attach(-1)

    def attach(self, more: int) -> None:
        """So many more generations run: the first finds the products as they were loaded, and the last leaves them."""
        with _ATTACHING:
            was, self.inside = self.inside, self.inside + more
            if was and self.inside:
                return
            for packed in self.products:
                own = vars(packed.product)  # where accelerate's hooks put a forward, too
                if more > 0:
                    own.setdefault("forward", packed)
                elif own.get("forward") is packed:
                    del own["forward"]


class Packed:
    """The forward of a product: its own, or within `Packing` that of its packed weights.

    They are packed when they are first of use, and again in a later generation if they are no longer what was packed.
    """

    def __init__(self, product: nn.Linear) -> None:
        self.product = product
        self.kept: tuple[State, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not what is packed, which follows from it."""
        return {**vars(self), "kept": None}

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., V]."""
        looked_at = None if torch.compiler.is_compiling() else _PACKING.get()
        if looked_at is None or not few(x):
            return nn.Linear.forward(self.product, x)
        if self not in looked_at:  # once a generation, since it takes as long as many a product
            looked_at[self] = self.packed()
        packed = looked_at[self]
        if packed is None or packed.dtype != x.dtype:
            return nn.Linear.forward(self.product, x)
        return multiply(x, packed, self.product.bias)

    def packed(self) -> Tensor | None:
        """The packed weights; None where the plain ones are as fast, or are not to be had."""
        weight = self.product.weight
        if not is_plain(self.product) or weight.requires_grad or not pays(weight):
            self.kept = None
            return None
        kept, state = self.kept, State([weight])  # another thread may write self.kept at any moment
        if kept is None or kept[0] != state:
            kept = self.kept = None  # its memory before that of the new one
            kept = self.kept = state, pack(weight)
        return kept[1]


class Fixed:
    """A product whose weights never change."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight [V, D], bias [V]."""
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None
        self.pays = pays(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, V]."""
        if not self.pays or not few(x):
            return linear(x, self.weight, self.bias)
        if self.packed is None:
            self.packed = pack(self.weight)
        return multiply(x, self.packed, self.bias)


def few(x: Tensor) -> bool:
    """Has x [..., D] as many rows as packed products are made for?"""
    return FEW.get(x.dtype, MANY + 1) <= x.numel() // x.shape[-1] <= MANY


def pays(weight: Tensor) -> bool:
    """Is a packed product of these weights faster, and to be had?"""
    large = weight.numel() >= LEAST.get(weight.dtype, torch.inf)
    return large and weight.device.type == "cpu" and able(weight.dtype)


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
    if dtype not in LEAST or not torch.backends.mkldnn.is_available():
        return False
    draws = torch.Generator("cpu").manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=draws, device="cpu").to(dtype) for rows in (FEW[dtype], 96))
    try:
        made = multiply(x, pack(weight), None)
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return False
    return made.dtype == dtype and torch.allclose(made.float(), linear(x, weight).float(), rtol=0.02, atol=0.05)
