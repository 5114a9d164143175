"""Experts for CPUs: as fast as transformers' own, and what a token gets does not depend on where others are sent.

transformers' `grouped_mm` gives an expert's product the tokens that a router sends it. A product's last bits depend on
how many they are, and so on all other tokens. Here they are padded to a number, or parted into several, whose products
have the same bits: `mmlm/grouped.py` knows which. Which are used follows from the number of tokens alone.

N tokens, k experts of each, E experts; S tokens of all experts, with padding; D width.
"""

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
        chosen = torch.cat([layers.one(number, hidden) for number in top_k_index[0].tolist()])
        return (chosen * top_k_weights.T).sum(0, keepdim=True).to(hidden.dtype)
    way = way_of(tokens * k / self.num_experts, layers.weights)
    groups = Groups(top_k_index, self.num_experts, way)
    turns = [layers(x, ends, way) for x, ends in groups.turns(Spread.apply(hidden, groups.tokens, groups.rows))]
    chosen = Gather.apply(torch.cat(turns) if len(turns) > 1 else turns[0], groups.rows).view(tokens, k, -1)
    return (chosen * top_k_weights[..., None]).sum(1).to(hidden.dtype)


class Groups:
    """The rows of each expert, one for each of its tokens, and padding. Those of more than `way.most` take turns.

    Attributes:
        tokens: [S] whose states a row gets; a padding row gets those of token 0.
        rows: [N * k] of each token, one for each of its experts.
        ends: [turns, E] the row behind an expert's last.
    """

    def __init__(self, index: Tensor, experts: int, way: Way) -> None:
        number, k = index.shape
        group = index.reshape(-1).numpy()  # by NumPy, as its calls are shorter: half the time for 8 tokens
        order = group.argsort(kind="stable")
        group = group[order]
        counts = np.bincount(group, minlength=experts)
        rank = np.arange(len(group)) - (counts.cumsum() - counts)[group]  # among its expert's tokens
        turns = 1
        if number > way.most:
            its_turns = np.maximum(counts - 1, 0) // way.most + 1
            turns = its_turns.max()
            size = (-(-counts // its_turns))[group]  # the same in all of them: 66 and 66, not 128 and 4
            group, rank = group + rank // size * experts, rank % size
            counts = np.bincount(group, minlength=turns * experts)
        sizes = np.where(counts > 0, np.maximum(-(-counts // way.step) * way.step, way.least), 0)
        ends = sizes.cumsum()
        rows = np.empty_like(order)
        rows[order] = places = rank + (ends - sizes)[group]
        tokens = np.zeros(ends[-1], dtype=order.dtype)
        tokens[places] = order // k
        self.rows, self.tokens = torch.from_numpy(rows), torch.from_numpy(tokens)
        self.ends = torch.from_numpy(ends.astype(np.int32)).view(turns, experts)

    def turns(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of rows [S, D] those of each turn, and where among them each expert's end, [E]."""
        starts = [0, *self.ends[:-1, -1].tolist()]
        ends = [its - start if start else its for its, start in zip(self.ends, starts, strict=True)]
        return list(zip(x.tensor_split(starts[1:]), ends, strict=True))


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
        return grad.index_select(0, rows).view(ctx.number, -1, grad.shape[-1]).sum(1), None, None


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
        # [E, in, out]
        self.weights = weights if experts.is_transposed else [weight.transpose(1, 2) for weight in weights]
        self.biases = [getattr(experts, f"{name}_bias") for name in names] if experts.has_bias else None

    def __call__(self, x: Tensor, ends: Tensor, way: Way) -> Tensor:
        """What the experts make of their rows: x [S, D], ends [E] -> [S, D]."""
        expert = torch.bucketize(torch.arange(len(x)), ends, right=True) if self.biases else None

        def layer(number: int, x: Tensor) -> Tensor:
            y = product(x.to(self.weights[number].dtype), self.weights[number], ends, way.columns)
            return y + self.biases[number][expert] if self.biases else y

        return self.through(layer, x)

    def one(self, expert: int, x: Tensor) -> Tensor:
        """What one expert makes of a token: [1, D] -> [1, D]."""

        def layer(number: int, x: Tensor) -> Tensor:
            return linear(x, self.weights[number][expert].T, self.biases[number][expert] if self.biases else None)

        return self.through(layer, x)

    def through(self, layer: Callable[[int, Tensor], Tensor], x: Tensor) -> Tensor:
        inner = layer(0, x)
        inner = self.experts._apply_gate(inner) if self.experts.has_gate else self.experts.act_fn(inner)
        y = layer(1, inner)
        return self.experts.post_expert_norm(y) if self.experts.has_post_expert_norm else y


def use_padded_experts(decoder: PreTrainedModel) -> None:
    """Switches the decoder's experts to `padded_experts`, if it has any that transformers lets one choose for."""
    if any(hasattr(module, "has_post_expert_norm") for module in decoder.modules()):
        ALL_EXPERTS_FUNCTIONS.register(NAME, padded_experts)
        decoder.set_experts_implementation(NAME)
