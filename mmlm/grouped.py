"""Products of groups of tokens, each with a matrix of its own, whose bits do not depend on how large the groups are.

How a product is summed depends on how many tokens are in it; their number is therefore one of those whose tokens have
all the same bits, which a probe finds out. In fp32 the tokens are the product's rows or its columns, which have other
bits: on a 2-core Xeon rows are the faster up to 8 and from 64 on, columns between them (310 us instead of 460 for 32
tokens and [2048, 512]). In 16 bits oneDNN compiles a kernel for every shape, which takes 10 ms where the product takes
one: there are few. Steps that sent experts other numbers of tokens each time took 0.25 to 0.4 of transformers' own.

E matrices, S tokens of all of them.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import grouped_mm

SPREAD = 1.5  # a group is seldom larger than so many times the average


class Way(NamedTuple):
    """How products are taken."""

    columns: bool  # are the tokens columns, or rows?
    least: int  # of how many tokens
    step: int  # more by so many each
    most: int


SIXTEEN_BITS = Way(True, 8, 8, 8), Way(False, 8, 8, 32), Way(False, 48, 16, 192)
WAYS = {  # the first in which most groups are one product, else the last
    torch.float32: (Way(False, 2, 1, 14), Way(True, 2, 2, 56), Way(False, 64, 16, 192)),
    torch.bfloat16: SIXTEEN_BITS,
    torch.float16: SIXTEEN_BITS,
}
OTHERS = (Way(False, 64, 64, 64),)  # that `grouped_mm` does not take


def way_of(average: float, weights: list[Tensor]) -> Way:
    """How products of groups of so many tokens, on average, are taken with each of the weights [E, in, out]."""
    ways = WAYS[weights[0].dtype] if all(map(fits, weights)) else OTHERS
    threads = torch.get_num_threads()
    for way in ways:
        kinds = [(weight.size(1), weight.size(2), weight.stride(2) == 1, weight.dtype) for weight in weights]
        most = min(alike(way, *kind, threads) for kind in kinds)
        if average * SPREAD <= most:
            break
    return way._replace(most=most)


def fits(weight: Tensor) -> bool:
    """Does `grouped_mm` take it? It has no doubles, and wants rows of whole 16 bytes."""
    return weight.dtype in WAYS and all(size * weight.itemsize % 16 == 0 for size in weight.shape[1:])


def product(x: Tensor, weight: Tensor, ends: Tensor, columns: bool) -> Tensor:
    """x [S, in], weight [E, in, out], the last token of each group before ends [E] -> [S, out]."""
    if not fits(weight):
        parts = x.tensor_split(ends[:-1].tolist())
        return torch.cat([part @ its for part, its in zip(parts, weight, strict=True)])
    return Columns.apply(x, weight, ends) if columns else grouped_mm(x, weight, offs=ends)


class Columns(Function):
    """`product` with the tokens as columns. In its backward they are rows, which are the faster there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight, ends)
        return grouped_mm(weight.transpose(1, 2), x.T, offs=ends).T.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        of_x = grouped_mm(grad, weight.transpose(1, 2), offs=ends) if ctx.needs_input_grad[0] else None
        of_weight = grouped_mm(x.T, grad, offs=ends) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


@cache
@torch.no_grad()
def alike(way: Way, inputs: int, outputs: int, outputs_last: bool, dtype: torch.dtype, threads: int) -> int:
    """How many tokens, `way.most` at the most, have in a product the bits that they have among `way.least`.

    The numbers cancel each other out: only rounding is left, which shows in nearly all results how they were summed.
    Of others most would round to the same 16 bits either way.

    Args:
        outputs_last: lie a weight's outputs side by side, not its inputs?
        threads: that torch multiplies with.
    """
    draws = torch.Generator("cpu").manual_seed(0)
    half, order = inputs // 2, torch.randperm(inputs, generator=draws)
    weight = torch.randn(half, outputs, generator=draws, device="cpu", dtype=dtype)
    weight = torch.cat([weight, -weight, weight.new_zeros(inputs % 2, outputs)])[order]
    weight = weight if outputs_last else weight.T.contiguous().T
    x = 256 * torch.randn(way.most, half, generator=draws, device="cpu", dtype=dtype)
    x = torch.cat([x, x, x.new_zeros(way.most, inputs % 2)], 1)[:, order]

    def made(x: Tensor) -> Tensor:
        return product(x, weight[None], torch.tensor([len(x)], dtype=torch.int32), way.columns)

    few = torch.cat([made(x[first : first + way.least]) for first in range(0, way.most, way.least)])
    size = way.least
    while size < way.most and torch.equal(made(x[: size + way.step]), few[: size + way.step]):
        size += way.step
    return size
