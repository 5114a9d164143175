"""Experts for CPUs: the rows of each expert padded, to a number that does not depend on where a router sends them.

oneDNN compiles a kernel for every new shape of a bf16 product, and the rows that a router sends to an expert are a new
number at every step: on a 2-core machine the gradient of a product took 10 ms at its first shape and 0.75 ms from the
second time on. With rows padded there are few shapes. transformers' `grouped_mm` has no such padding. A product's last
bits depend on its rows, too, up to 64 of them: so that a token gets the same bits however the others are routed, that
many follow from the number of tokens alone. Where rows of wide matrices have the same bits from 2 on, as MKL gives them
in fp32, few tokens' are padded to 2.

N tokens, k experts of each, D width.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "padded_mm"
ROWS = 64  # that padding goes up to
FEW = 12  # rows that may have the same bits as 2, which take half as long as 8
MOST = 192  # rows of one product. With [1536, 576] oneDNN's bits are other ones from 256 rows on in fp32, 384 in bf16


class Experts(Protocol):
    """The experts of one MoE layer, as transformers hands them to an experts function.

    Weights and biases are named `gate_up_proj` (`up_proj` without a gate), `down_proj`, and the same with `_bias`.
    """

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool
    _is_expert_parallel: bool
    _apply_gate: Callable[[Tensor], Tensor]
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]


def padded_experts(self: Experts, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' share of an MoE layer, as transformers' experts interface asks for it: [N, D] -> [N, D].

    Frozen experts get no weight gradients. Elsewhere than on a CPU, where a decoder may have been moved since, counting
    the rows would wait for the device at every layer: transformers' `grouped_mm` needs no count. Experts spread over
    processes are left to it, too, and so is what torch.compile makes: counting breaks its graph.
    """
    if hidden.device.type != "cpu" or self._is_expert_parallel or torch.compiler.is_compiling():
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden, top_k_index, top_k_weights)
    layers = Layers(self)
    tokens, k = top_k_index.shape
    if tokens == 1:  # as in generating: no order is to be found
        chosen = torch.cat([layers(number, hidden) for number in top_k_index[0].tolist()])
        return (chosen * top_k_weights.T).sum(0, keepdim=True).to(hidden.dtype)
    width = min(ROWS, 1 << (tokens - 1).bit_length())  # no expert gets more rows than there are tokens
    if tokens <= FEW and layers.steady():
        width = 2
    expert = top_k_index.reshape(-1)
    order = expert.argsort(stable=True)
    results = []
    first = 0
    for number, count in enumerate(torch.bincount(expert, minlength=self.num_experts).tolist()):
        if count:
            for rows in (order[first : first + count] // k).split(MOST):
                x = hidden.index_select(0, pad(rows, (0, -len(rows) % width)))
                results.append(layers(number, x)[: len(rows)])
            first += count
    back = torch.empty_like(order).index_put((order,), torch.arange(len(order), device=order.device))
    chosen = torch.cat(results).index_select(0, back).view(tokens, k, -1)
    return (chosen * top_k_weights[..., None]).sum(1).to(hidden.dtype)


class Layers:
    """The two layers of each expert. Weights are asked for once: with LoRA on them, that is when they are computed."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts
        names = "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"
        self.weights = [getattr(experts, name) for name in names]
        self.biases = [getattr(experts, f"{name}_bias") for name in names] if experts.has_bias else None

    def __call__(self, number: int, x: Tensor) -> Tensor:
        """What expert `number` makes of the rows x: [rows, D] -> [rows, D]."""
        inner = self.product(0, number, x)
        inner = self.experts._apply_gate(inner) if self.experts.has_gate else self.experts.act_fn(inner)
        y = self.product(1, number, inner)
        return self.experts.post_expert_norm(y) if self.experts.has_post_expert_norm else y

    def steady(self) -> bool:
        """Do 2 rows come out with the bits that they have among `FEW`?"""
        dtypes = {weight.dtype for weight in self.weights}
        shapes = [tuple(weight.shape[1:]) for weight in self.weights]
        threads = torch.get_num_threads()
        return dtypes == {torch.float32} and all(steady(*its, self.experts.is_transposed, threads) for its in shapes)

    def product(self, layer: int, number: int, x: Tensor) -> Tensor:
        weight = self.weights[layer][number]
        bias = self.biases[layer][number] if self.biases else None
        return linear(x, weight.T if self.experts.is_transposed else weight, bias)


@cache
@torch.no_grad()
def steady(first: int, second: int, transposed: bool, threads: int) -> bool:
    """Have rows of a product with weights [first, second] in fp32 the same bits, be there 2 of them or up to `FEW`?

    Args:
        threads: that torch multiplies with.
    """
    draws = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(first, second, generator=draws, device="cpu")
    weight = weight.T if transposed else weight
    x = torch.randn(FEW, weight.shape[1], generator=draws, device="cpu")
    pairs = torch.cat([linear(x[row : row + 2], weight) for row in range(0, FEW, 2)])
    return all(torch.equal(linear(x[:rows], weight), pairs[:rows]) for rows in range(2, FEW + 1))


def use_padded_experts(decoder: PreTrainedModel) -> None:
    """Switches the decoder's experts to `padded_experts`, if it has any that transformers lets one choose for."""
    if any(hasattr(module, "has_post_expert_norm") for module in decoder.modules()):
        ALL_EXPERTS_FUNCTIONS.register(NAME, padded_experts)
        decoder.set_experts_implementation(NAME)
