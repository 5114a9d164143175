"""How far is mmlm from what the machine allows? `python benchmarks/floors.py`.

For each kind of work of `benchmarks/peers.py`, of the plain decoder ("text") and of mmlm on it: the floor, what it
takes, and how many times the floor that is. A floor is the sum of its phases: forward and backward, and the optimizer;
or the prompt, and the tokens after it. A phase cannot take less than the floating-point operations that it needs over
the rate of a large matrix product in the decoder's dtype, nor less than the bytes that it must move over the rate at
which large arrays are read and copied. All rates are measured first, in the same process. A line of JSON for each.

What is needed is counted here, by hand: products alone, and of those no logits of tokens that are not learnt, no
attention to what comes after, no experts that no token takes, no padding, nothing twice. tests/benchmarks holds
the counts to those of torch.utils.flop_counter. Weights are moved once a pass, since no cache holds them all; hidden
states are not counted as moved, since one may.

R rows, T text tokens of a row, N = R T, L learnt ones, S media embeddings of a row, each row's its own; D width of the
decoder, M of the media, C of features, V vocabulary, H heads, K key heads, d their width, F inside a feed-forward.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

# OpenMP's waiting threads spin for some 50 us, not for ever
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from contenders import CELLS, EVERY, MEDIA, Work, plain
from generation import machine, seconds
from page import table, write
from peers import WORKS, measure
from training import product_rate
from transformers import PreTrainedConfig

from mmlm.config import AdapterConfig, fit_config
from mmlm.decoder import fast_device

FP32 = 4  # bytes

# -- the machine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What the machine can do in a second."""

    product: float
    """FLOPs of a large matrix product."""
    read: float
    """Bytes of a large array read."""
    copy: float
    """Bytes of one copied, read and written."""


def fastest(run: Callable[[], Any]) -> float:
    return min(seconds(run) for _ in range(10))


def rates(dtype: torch.dtype) -> Rates:
    """Measured now: the best of a few each."""
    device = fast_device()
    large = torch.ones(2**28 if device.type != "cpu" else 2**26, device=device)
    to, moved = torch.empty_like(large), large.numel() * large.itemsize
    return Rates(
        product_rate(dtype),
        moved / fastest(large.sum),
        2 * moved / fastest(partial(to.copy_, large)),
    )


# -- what is needed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """What must be done, in one go, before anything else."""

    name: str
    flops: float
    reads: float
    """Bytes."""
    writes: float = 0
    """Bytes, no more than are read."""

    def seconds(self, rates: Rates) -> float:
        return max(self.flops / rates.product, self.moving(rates))

    def moving(self, rates: Rates) -> float:
        return (self.reads - self.writes) / rates.read + 2 * self.writes / rates.copy


class Decoder:
    """Counts of a Llama or Mixtral. Weights in numbers, operations in FLOPs."""

    def __init__(self, config: PreTrainedConfig, bytes_: int) -> None:
        self.D, self.H, self.K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.d = getattr(config, "head_dim", None) or self.D // self.H
        self.layers, self.bytes = config.num_hidden_layers, bytes_
        self.experts = getattr(config, "num_local_experts", 1)
        self.taken = getattr(config, "num_experts_per_tok", 1)
        self.attention = 2 * self.D * (self.H + self.K) * self.d
        self.router = self.D * self.experts if self.experts > 1 else 0
        self.F = config.intermediate_size
        self.expert = 3 * self.D * self.F
        self.head = self.D * config.vocab_size
        self.kv = 2 * self.K * self.d  # of a token

    def used(self, tokens: float) -> float:
        """Weights of a layer that so many tokens need: of experts those that any is expected to take."""
        met = self.experts * (1 - (1 - self.taken / self.experts) ** tokens)
        return self.attention + self.router + met * self.expert

    def products(self, tokens: float) -> float:
        """A layer's, forward."""
        return 2 * tokens * (self.attention + self.router + self.taken * self.expert)

    def looks(self, pairs: float) -> float:
        """A layer's attention to earlier tokens, forward, of so many pairs of them."""
        return 4 * pairs * self.H * self.d


class Blocks:
    """Counts of mmlm's gated blocks and its media projection; of none, all are 0."""

    def __init__(self, config: AdapterConfig | None) -> None:
        self.at = config.layers if config else []
        if config is None:
            self.M = self.C = self.D = self.heads = self.kv = self.F = 0
        else:
            self.M, self.D, self.heads = config.media_dim, config.hidden, config.heads * config.head_dim
            self.C = min(config.channels, default=MEDIA)
            self.kv, self.F = 2 * config.kv_heads * config.head_dim, round(config.ff_factor * self.D)
        self.count = len(self.at)
        self.read = 2 * self.D * self.heads + 3 * self.D * self.F  # weights of a block that every token meets
        self.rotations = 2 * self.D**2  # fixed ones of a block; without gradients they are part of other weights
        self.media = self.M * self.kv  # weights of a block that every media embedding meets
        self.projection = self.C * self.M
        self.trained = self.count * (self.read + self.media) + self.projection

    def looks(self, pairs: float) -> float:
        """A block's attention to media, forward."""
        return 4 * pairs * self.heads

    def projected(self, cells: int, ways: int) -> float:
        """The media projection, forward (1 way) or to its weights' gradients, too (2).

        A fixed rotation is part of it: of the cells, which have no gradients, or of its weights, and theirs.
        """
        return 2 * ways * cells * self.projection + 2 * self.C**2 * min(cells, ways * self.M)


@dataclass(frozen=True)
class Counts:
    """What a model needs."""

    decoder: Decoder
    blocks: Blocks

    @classmethod
    def of(cls, config: PreTrainedConfig, adapter: AdapterConfig | None, dtype: torch.dtype) -> "Counts":
        return cls(Decoder(config, dtype.itemsize), Blocks(adapter))

    def step(self, R: int, T: int, S: int, L: int) -> list[Phase]:
        """A training step. Of frozen weights there is the gradient to what they multiply, of trained ones both.

        Below the first block there is no gradient; without blocks it goes down to the embeddings.
        """
        its, blocks, N = self.decoder, self.blocks, R * T
        deep = its.layers - (blocks.at[0] if blocks.at else 0)  # layers with a backward
        pairs = R * T * (T + 1) / 2
        flops = (its.layers + deep) * its.products(N) + (its.layers + 2 * deep) * its.looks(pairs) + 4 * L * its.head
        per_block = 6 * N * blocks.read + 4 * N * blocks.rotations + 6 * R * S * blocks.media
        flops += blocks.count * (per_block + 3 * blocks.looks(N * S))
        flops -= blocks.rotations * N if blocks.count else 0  # nothing before the first block's first one learns
        flops += blocks.projected(R * S, 2)
        frozen = (its.layers + deep) * its.used(N) + 2 * its.head
        trained = FP32 * blocks.trained
        forward = Phase("forward and backward", flops, frozen * its.bytes + 2 * trained, trained)
        return [forward, Phase("optimizer", 0, 4 * trained, 3 * trained)] if trained else [forward]

    def kept(self, R: int, T: int, S: int, L: int) -> float:
        """Bytes that a training step has at its peak over the model: AdamW's, and what backward needs of forward.

        That is, if no product is computed again, what goes into norms, attention, gates of feed-forwards and trained
        products, what comes out of attention, and the learnt tokens' logits, in whose place their gradient can be; no
        scores of attention, as fused kernels show. Nor what a trained scale, a tanh gate or a router's weight
        multiplies: their gradients follow from those of the products beside them.
        """
        its, blocks, N = self.decoder, self.blocks, R * T
        deep = its.layers - (blocks.at[0] if blocks.at else 0)
        layer = 2 * its.D + 2 * its.H * its.d + its.kv + 2 * its.taken * its.F
        block = 4 * blocks.D + 3 * blocks.heads + 3 * blocks.F
        media = R * S * (blocks.C + 2 * blocks.M + blocks.count * 3 * blocks.kv / 2)  # keys before their norm and after
        states = its.bytes * N * (deep * layer + blocks.count * block) + its.bytes * media
        logits = its.bytes * L * its.head / its.D
        return 2 * FP32 * blocks.trained + max(states + logits, FP32 * blocks.trained)

    def generation(self, R: int, T: int, S: int, new: int) -> list[Phase]:
        """The prompt, which gives the first token, and each further one."""
        its, blocks, b = self.decoder, self.blocks, self.decoder.bytes
        shown = b * R * S * blocks.count * blocks.kv  # keys and values of the media
        flops = its.layers * (its.products(R * T) + its.looks(R * T * (T + 1) / 2)) + 2 * R * its.head
        flops += blocks.count * (2 * R * T * blocks.read + 2 * R * S * blocks.media + blocks.looks(R * T * S))
        flops += blocks.projected(R * S, 1)
        weights = its.layers * its.used(R * T) + its.head + blocks.trained
        phases = [Phase("prompt", flops, b * weights + shown, shown)]
        for past in range(T, T + new - 1):
            flops = its.layers * (its.products(R) + its.looks(R * (past + 1))) + 2 * R * its.head
            flops += blocks.count * (2 * R * blocks.read + blocks.looks(R * S))
            weights = its.layers * its.used(R) + its.head + blocks.count * blocks.read
            cache = b * R * past * its.layers * its.kv
            phases.append(Phase("tokens", flops, b * weights + shown + cache))
        return phases


def counts(work: Work, who: str) -> Counts:
    """Those of "text" or "mmlm" as `contenders.py` builds them."""
    config = plain(work).config
    adapter = fit_config(config, config.num_hidden_layers, every=EVERY, start=0) if who == "mmlm" else None
    return Counts.of(config, adapter, work.dtype)


def phases(work: Work, who: str) -> list[Phase]:
    """What a kind of work needs."""
    needed, media = counts(work, who), work.tiles * CELLS
    if work.new:
        return needed.generation(work.rows, work.tokens, media, work.new)
    return needed.step(work.rows, work.tokens, media, work.rows * (work.tokens // 4))


# -- beside what it takes ---------------------------------------------------------------------------------------------


def told(its: list[Phase], can: Rates) -> dict[str, dict[str, float | str]]:
    """By phase: its floor, and what decides it."""
    found: dict[str, dict[str, float | str]] = {}
    for name in dict.fromkeys(phase.name for phase in its):
        mine = [phase for phase in its if phase.name == name]
        computing, moving = sum(one.flops for one in mine) / can.product, sum(one.moving(can) for one in mine)
        decides = "operations" if computing > moving else "bytes"
        found[name] = {"seconds": round(sum(one.seconds(can) for one in mine), 4), "by": decides}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="the table into docs/performance.md")
    args = parser.parse_args()
    print(machine(), flush=True)
    can = {dtype: rates(dtype) for dtype in dict.fromkeys(WORKS[name].dtype for name in args.work)}
    rows = [["", "", "floor", "of which", "measured", "measured / floor"]]
    for name in args.work:
        its = can[WORKS[name].dtype]
        found = measure(name, ["text", "mmlm"], args.rounds)
        for who, times in found.items():
            parts = told(needed := phases(WORKS[name], who), its)
            floor, took = sum(phase.seconds(its) for phase in needed), times["wall"][0]
            gflops = round(sum(phase.flops for phase in needed) / 1e9, 2)
            line = {"work": name, "contender": who, "gflops": gflops, "floor": round(floor, 4), "phases": parts}
            print(json.dumps(line | {"wall": times["wall"], "over_floor": round(took / floor, 2)}), flush=True)
            of = ", ".join(f"{part} {part_['seconds']:.3f} ({part_['by']})" for part, part_ in parts.items())
            rows.append([name, who, f"{floor:.3f} s", of, f"{took:.3f} s", f"{took / floor:.2f}"])
    speeds = [
        f"{str(dtype).removeprefix('torch.')} products at {its.product / 1e9:,.0f} GFLOPs a second, reads at "
        f"{its.read / 1e9:.1f} GB, copies at {its.copy / 1e9:.1f} GB"
        for dtype, its in can.items()
    ]
    text = "\n\n".join([table(rows), f"Rates: {'; '.join(speeds)}. Medians of {args.rounds} turns."])
    print(f"\n{text}")
    if args.write:
        write("floors", text)


if __name__ == "__main__":
    main()
