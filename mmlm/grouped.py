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
    """Which products are allowed: (False, 64, 16, 192) are those of 64, 80, 96 ... 192 tokens, as rows."""

    columns: bool
    least: int
    step: int
    most: int


SIXTEEN_BITS = Way(True, 8, 8, 8), Way(False, 8, 8, 32), Way(False, 48, 16, 192)
WAYS = {  # the first in which most groups are one product, else the last
    torch.float32: (Way(False, 2, 1, 14), Way(True, 2, 2, 56), Way(False, 64, 16, 192)),
    torch.bfloat16: SIXTEEN_BITS,
    torch.float16: SIXTEEN_BITS,
}
OTHERS = (Way(False, 64, 64, 64),)  # for dtypes and widths that `grouped_mm` does not take


def way_of(average: float, weights: list[Tensor]) -> Way:
    """Which products are allowed with each of the weights [E, in, out], where groups have so many tokens on average."""
    ways = WAYS[weights[0].dtype] if all(map(fits, weights)) else OTHERS
    kinds = [(weight.size(1), weight.size(2), weight.stride(2) == 1, weight.dtype) for weight in weights]
    state = torch.get_num_threads(), torch.get_float32_matmul_precision()
    for way in ways:
        most = min(alike(way, *kind, *state) for kind in kinds)
        if average * SPREAD <= most:
            break
    return way._replace(most=most)


def fits(weight: Tensor) -> bool:
    """Does `grouped_mm` take it? It has no doubles, and wants rows of whole 16 bytes."""
    return weight.dtype in WAYS and all(size * weight.itemsize % 16 == 0 for size in weight.shape[1:])


def product(x: Tensor, weight: Tensor, ends: Tensor, columns: bool) -> Tensor:
    """x [S, in], weight [E, in, out], the token behind each group's last ends [E] -> [S, out], 0 behind all groups."""
    if fits(weight):
        return Product.apply(x, weight, ends, columns)
    *parts, rest = x.tensor_split(ends.tolist())
    made = [part @ its for part, its in zip(parts, weight, strict=True)]
    return torch.cat([*made, rest.new_zeros(len(rest), weight.shape[2])])


class Product(Function):
    """By `grouped_mm`, which has no gradient of tokens as columns. In backward they are rows: the faster there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor, columns: bool) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight, ends)
        if columns:
            y = grouped_mm(weight.transpose(1, 2), x.T, offs=ends).T.contiguous()
        else:
            y = grouped_mm(x, weight, offs=ends)
        return zeroed(y, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = zeroed(grouped_mm(grad, weight.transpose(1, 2), offs=ends), ends)
        if ctx.needs_input_grad[1]:
            of_weight = grouped_mm(x.T, grad, offs=ends)
        return of_x, of_weight, None, None


def zeroed(y: Tensor, ends: Tensor) -> Tensor:
    """With zeros behind all groups, where `grouped_mm` leaves what was in memory."""
    last = int(ends[-1])
    if last < len(y):
        y[last:] = 0
    return y


@cache
@torch.no_grad()
def alike(
    way: Way, inputs: int, outputs: int, outputs_last: bool, dtype: torch.dtype, threads: int, precision: str
) -> int:
    """How many tokens, `way.most` at the most, have in a product the bits that they have among `way.least`.

    The numbers of each sum cancel each other out: only rounding is left, which shows how they were summed. With
    ordinary numbers, most results of 16 bits would round to the same value and hide it. A few copies of one weight are
    made for it.

    Args:
        outputs_last: lie a weight's outputs side by side, not its inputs?
        threads, precision: that torch multiplies with now.
    """
    with torch.device("cpu"):
        draws = torch.Generator().manual_seed(0)
        half, order = inputs // 2, torch.randperm(inputs, generator=draws)
        weight = torch.randn(half, outputs, generator=draws, dtype=dtype)
        weight = torch.cat([weight, -weight, weight.new_zeros(inputs % 2, outputs)])[order]
        weight = weight if outputs_last else weight.T.contiguous().T
        x = 256 * torch.randn(way.most, half, generator=draws, dtype=dtype)
        x = torch.cat([x, x, x.new_zeros(way.most, inputs % 2)], 1)[:, order]

    def made(x: Tensor) -> Tensor:
        return product(x, weight[None], torch.tensor([len(x)], dtype=torch.int32, device="cpu"), way.columns)

    few = torch.cat([made(x[first : first + way.least]) for first in range(0, way.most, way.least)])
    size = way.least
    while size < way.most and torch.equal(made(x[: size + way.step]), few[: size + way.step]):
        size += way.step
    return size
