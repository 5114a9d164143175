"""Frozen weights on a CPU, laid out once as oneDNN's products of a few rows read them fastest.

A token of several texts is a few rows, and torch's own product of those takes up to twice as long as reading its
weights does. `generate` of a random Llama, 8 rows, was measured with all its products packed and with none: it took
0.82 (fp32) and 0.84 (bf16) of the time at a width of 512, 0.65 and 0.81 at 1,024, in fp32 0.54 at 2,048. One row takes
as long either way, and so do narrow products in fp32.

Sums are those of the other product to rounding. So of the decoder only `generate` takes it, for a token a row, and only
where every row has an image: a forward's logits, and what is generated without an image, are the base decoder's, bit
for bit; outside of it the decoder's modules are as they were loaded. What runs for tokens that see an image alone, as a
gated block, may always have it.

torch's operators for it are private: where they are missing, or say other than they should, nothing is packed. Packed
weights stand beside the plain ones, which other products need: a copy more, of the decoder at most an eighth of the
memory that machine or container has.

N rows, V features that come out, D that go in.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from mmlm.weights import State, is_plain

LEAST = {torch.float32: 2**20, torch.bfloat16: 2**17}  # weights of a product from which it is the faster
FEW = {torch.float32: 4, torch.bfloat16: 2}  # rows from which it is
MANY = 64  # rows up to which it is
SHARE = 8  # the part of the machine's memory that one decoder's packed weights may take
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container

_LOCK = Lock()
# In this thread: whose products are packed, and what was found of them in this generation.
_PACKING: ContextVar["tuple[Packing, dict[nn.Linear, Tensor | None]] | None"] = ContextVar("mmlm_packing", default=None)


class Packing:
    """A decoder's packed weights, and the forwards that its products have while something is generated.

    Args:
        layers: the decoder's, whose products count beside its output embedding.
    """

    def __init__(self, decoder: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
        self.decoder, self.layers = decoder, layers
        self.kept: WeakKeyDictionary[nn.Linear, tuple[State, Tensor]] = WeakKeyDictionary()
        self.attached: list[Packed] = []
        self.inside = 0  # generations, in all threads

    def __reduce__(self) -> Any:
        """What is copied and pickled: not what is packed, which follows from it."""
        return Packing, (self.decoder, self.layers)

    @contextmanager
    def __call__(self, rows: int = MANY) -> Iterator[None]:
        """Within it, in this thread, packed weights are used, if they are made for so many rows; 0: they are not."""
        on = few(self.decoder.dtype, rows)
        if on:
            self.attach()
        token = _PACKING.set((self, {}) if on else None)
        try:
            yield
        finally:
            _PACKING.reset(token)
            if on:
                self.detach()

    def attach(self) -> None:
        """The first of several generations finds the products as they were loaded."""
        with _LOCK:
            if not self.inside:
                found = list(self.products())
                for gone in set(self.kept) - set(found):
                    del self.kept[gone]
                self.attached = [Packed(self, product) for product in found]
                for packed in self.attached:
                    vars(packed.product).setdefault("forward", packed)  # accelerate's hooks put one there, too
            self.inside += 1

    def detach(self) -> None:
        """The last leaves them so."""
        with _LOCK:
            self.inside -= 1
            if self.inside == 0:
                for packed in self.attached:
                    if isinstance(vars(packed.product).get("forward"), Packed):
                        del packed.product.forward
                self.attached = []

    def products(self) -> Iterator[nn.Linear]:
        """What is to be packed: the output embedding, then as many of the layers' products as there is room for."""
        left = memory() // SHARE
        every = chain.from_iterable(layer.modules() for layer in self.layers)
        for product in dict.fromkeys([self.decoder.get_output_embeddings(), *every]):
            if isinstance(product, nn.Linear) and worth(product) and product.weight.nbytes <= left:
                left -= product.weight.nbytes
                yield product

    def weights(self, product: nn.Linear) -> Tensor | None:
        """A product's packed weights, packed anew if they are no longer what was packed."""
        with _LOCK:  # that they are packed once
            if not worth(product):
                return None
            kept, state = self.kept.get(product), State([product.weight])
            if kept is None or kept[0] != state:
                kept = None
                self.kept.pop(product, None)  # its memory before that of the new one
                kept = self.kept[product] = state, pack(product.weight)
            return kept[1]

    def forget(self) -> None:
        """Frees what is packed."""
        with _LOCK:
            self.kept.clear()


class Packed:
    """The forward of a product: its own, but for the tokens of a generation that is to take packed weights."""

    def __init__(self, packing: Packing, product: nn.Linear) -> None:
        self.packing, self.product = packing, product

    def __call__(self, input: Tensor) -> Tensor:
        """input [..., D] -> [..., V]."""
        packed = self.packed(input)
        return nn.Linear.forward(self.product, input) if packed is None else multiply(input, packed, self.product.bias)

    def packed(self, input: Tensor) -> Tensor | None:
        """The weights to take; None: its own. Several tokens of a row, as a prompt's, have those."""
        now = None if torch.compiler.is_compiling() else _PACKING.get()
        token = input.dim() == 3 and input.shape[1] == 1 and not input.requires_grad
        if now is None or now[0] is not self.packing or not (token and few(input.dtype, len(input))):
            return None
        found = now[1]
        if self.product not in found:  # looked at once a generation, since that takes as long as many a product
            found[self.product] = self.packing.weights(self.product)
        packed = found[self.product]
        return None if packed is None or packed.dtype != input.dtype else packed


class Fixed:
    """A product whose weights never change."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight [V, D], bias [V]."""
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None
        self.pays = pays(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, V], without gradients."""
        if not self.pays or x.dtype != self.weight.dtype or not few(x.dtype, len(x)):
            return linear(x, self.weight, self.bias)
        if self.packed is None:
            self.packed = pack(self.weight)
        return multiply(x, self.packed, self.bias)


def worth(product: nn.Linear) -> bool:
    """Is the packed product of its weights faster, and what it would say itself?"""
    return is_plain(product) and not product.weight.requires_grad and pays(product.weight)


def few(dtype: torch.dtype, rows: int) -> bool:
    """Are packed products made for so many rows? They know nothing of autocast."""
    return FEW.get(dtype, MANY + 1) <= rows <= MANY and not torch.is_autocast_enabled("cpu")


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
    with torch.autocast("cpu", enabled=False):
        try:
            made = multiply(x, pack(weight), None)
        except (AttributeError, RuntimeError):  # NotImplementedError is one
            return False
        return made.dtype == dtype and torch.allclose(made.float(), linear(x, weight).float(), rtol=0.02, atol=0.05)


@cache
def memory() -> int:
    """Bytes that this machine, or container, has."""
    least = psutil.virtual_memory().total
    for path in LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            least = min(least, int(Path(path).read_text()))
    return least
