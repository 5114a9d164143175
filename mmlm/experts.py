"""Experts for CPUs: as fast as transformers' own, and what a token gets does not depend on where others are sent.

transformers' `grouped_mm` gives an expert's product all tokens that a router sends to it. The last bits of a product
depend on how many they are, and so on all other tokens. Here each expert's tokens are padded to an allowed number, and
too many are split into several groups. Products of all allowed numbers give a token the same bits (`mmlm/grouped.py`);
which numbers are allowed follows from how many tokens there are in all.

N tokens, k experts of each, E experts; S tokens of all experts, with padding; D width, I inner width.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mmlm.grouped import Way, product, way_of

NAME = "padded_mm"
GRAIN, VECTOR = 2**15, 32  # numbers that torch gives a thread at the least, and computes at once (two of AVX-512)


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
    (tokens, k), width = top_k_index.shape, hidden.shape[-1]
    if tokens == 1 and not torch.is_autocast_enabled("cpu"):  # as in generating: there is nothing to put in order
        chosen = torch.cat([layers.one(expert, hidden) for expert in top_k_index[0].tolist()])
        return (chosen * top_k_weights.T).sum(0, keepdim=True).to(hidden.dtype)
    way = way_of(tokens * k / self.num_experts, layers.weights)
    groups = Groups(top_k_index, self.num_experts, way, layers.inner)
    turns = [layers(x, ends, way) for x, ends in groups.turns(Spread.apply(hidden, groups.tokens, groups.rows))]
    chosen = Gather.apply(torch.cat(turns) if len(turns) > 1 else turns[0], groups.rows).view(tokens, k, width)
    return (chosen * top_k_weights[..., None]).sum(1).to(hidden.dtype)


class Groups:
    """Where the tokens of each expert stand among S rows, with padding behind them.

    More tokens of an expert than `way.most` are split over several turns, which are products of their own. Behind the
    last expert of a turn there may be rows of nobody, see `shared_evenly`.

    Attributes:
        tokens: [S] whose states each row gets.
        rows: [N * k] of each token, one for each of its experts.
        ends: [turns, E] the row behind an expert's last, counted from the first of the turn.
    """

    def __init__(self, index: Tensor, experts: int, way: Way, inner: int) -> None:
        k = index.shape[1]
        expert = index.reshape(-1).numpy()  # by NumPy, as its calls are shorter: half the time for 8 tokens
        order = expert.argsort(kind="stable")
        expert = expert[order]
        counts = np.bincount(expert, minlength=experts)
        rank = np.arange(len(order)) - (counts.cumsum() - counts)[expert]  # among its expert's tokens
        its_turns = np.maximum(-(-counts // way.most), 1)
        turns = its_turns.max()
        if turns > 1:
            size = (-(-counts // its_turns))[expert]  # the same in all of them: 66 and 66, not 128 and 4
            turn, rank = rank // size, rank % size
            counts = np.bincount(turn * experts + expert, minlength=turns * experts)
        else:
            turn = 0
        sizes = np.zeros((turns, experts + 1), dtype=np.int64)  # the last has the rows of nobody
        counts = counts.reshape(turns, experts)
        sizes[:, :-1] = np.where(counts > 0, np.maximum(-(-counts // way.step) * way.step, way.least), 0)
        sizes[:, -1] = [shared_evenly(rows, inner) - rows for rows in sizes.sum(1).tolist()]
        group = turn * (experts + 1) + expert
        rows = (sizes.cumsum() - sizes.ravel())[group] + rank
        first = np.zeros(sizes.size, dtype=order.dtype)
        first[group[::-1]] = order[::-1]  # the first of a group comes last
        tokens = first.repeat(sizes.ravel())  # padding: an expert's own token, which it can take
        tokens[rows] = order
        back = np.empty_like(order)
        back[order] = rows
        self.tokens, self.rows = torch.from_numpy(tokens // k), torch.from_numpy(back)
        self.ends = torch.from_numpy(sizes[:, :-1].cumsum(1, dtype=np.int32))
        self.sizes = sizes.sum(1).tolist()

    def turns(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of rows [S, D] those of each turn, and its ends [E]."""
        return list(zip(x.split(self.sizes), self.ends, strict=True))


def shared_evenly(rows: int, inner: int) -> int:
    """As many rows, or a few more, so that each thread's share of an activation [rows, I] is whole rows and vectors.

    torch computes what is left over of a vector by other code than vectors, which rounds otherwise, and gives a thread
    every so many numbers, wherever that is in a row: all threads take part in gelu, in others each has `GRAIN` numbers.
    """
    threads = torch.get_num_threads()
    while True:
        shares = math.lcm(threads, min(threads, -(-rows * inner // GRAIN))) if rows * inner > GRAIN // 2 else 1
        unit = shares * (VECTOR // math.gcd(VECTOR, inner))
        if rows % unit == 0:
            return rows
        rows = -(-rows // unit) * unit


class Spread(Function):
    """Each row its token's states: [N, D] -> [S, D]. torch's own backward would add them up a row at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.number = len(hidden)
        return hidden.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        k = len(rows) // max(1, ctx.number)
        return grad.index_select(0, rows).view(ctx.number, k, grad.shape[-1]).sum(1), None, None


class Gather(Function):
    """The rows of the tokens, without padding: [S, D] -> [N * k, D]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.number = len(y)
        return y.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.number, grad.shape[-1]).index_copy(0, rows, grad), None


class Layers:
    """The two layers of each expert. Weights are asked for once: with LoRA on them, that is when they are computed."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts
        names = "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"
        weights = [getattr(experts, name) for name in names]
        # each [E, in, out]
        self.weights = weights if experts.is_transposed else [weight.transpose(1, 2) for weight in weights]
        self.inner = self.weights[1].shape[1]
        self.biases = [getattr(experts, f"{name}_bias") for name in names] if experts.has_bias else None

    def __call__(self, x: Tensor, ends: Tensor, way: Way) -> Tensor:
        """What the experts make of their rows: x [S, D], ends [E] -> [S, D]."""
        expert = torch.bucketize(torch.arange(len(x), device=x.device), ends, right=True) if self.biases else None

        def layer(number: int, x: Tensor) -> Tensor:
            y = product(x.to(self.weights[number].dtype), self.weights[number], ends, way.columns)
            return y + self.biases[number][expert] if self.biases else y

        return self.through(layer, x)

    def one(self, expert: int, x: Tensor) -> Tensor:
        """What one expert makes of a token: [1, D] -> [1, D]."""

        def layer(number: int, x: Tensor) -> Tensor:
            weight = self.weights[number][expert]
            return linear(x.to(weight.dtype), weight.T, self.biases[number][expert] if self.biases else None)

        return self.through(layer, x)

    def through(self, layer: Callable[[int, Tensor], Tensor], x: Tensor) -> Tensor:
        """Both layers, the first before the activation: layer(0 or 1, its inputs) -> its outputs."""
        inner = layer(0, x)
        inner = self.experts._apply_gate(inner) if self.experts.has_gate else self.experts.act_fn(inner)
        y = layer(1, inner)
        return self.experts.post_expert_norm(y) if self.experts.has_post_expert_norm else y


def use_padded_experts(decoder: PreTrainedModel) -> None:
    """Switches the decoder's experts to `padded_experts`, if it has any that transformers lets one choose for."""
    if any(hasattr(module, "has_post_expert_norm") for module in decoder.modules()):
        ALL_EXPERTS_FUNCTIONS.register(NAME, padded_experts)
        decoder.set_experts_implementation(NAME)
