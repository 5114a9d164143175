"""The layers below the first gated block see text alone: what leaves them is kept, text by text.

A sample that comes again, or another with the same question and answer, costs the layers from the first block on and no
others. R rows, T text tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST = 4096  # texts kept; one of 9 tokens takes 10 kB with SmolLM2


class Below:
    """Hidden states before the layer of the first block, kept once computed.

    Args:
        layers: the decoder's.
        first: number of the layer that has the first block in front.
    """

    def __init__(self, layers: nn.ModuleList, first: int) -> None:
        self.layers, self.first = layers, first
        self.kept: dict[tuple[int, ...], Tensor] = {}  # the oldest first

    def missing(self, texts: Sequence[tuple[int, ...]]) -> list[int]:
        """Places in `texts` of those that are not kept, each text once."""
        new = {ids: place for place, ids in enumerate(texts) if ids not in self.kept}
        return sorted(new.values())

    @torch.no_grad()
    def add(
        self, decoder: nn.Module, texts: Sequence[tuple[int, ...]], lengths: Sequence[int], inputs: Any
    ) -> dict[tuple[int, ...], Tensor]:
        """Computes, keeps and returns the states of the last `lengths[i]` tokens of each of `texts`.

        Args:
            decoder: without its output embedding.
            inputs: the texts as the decoder takes them, right-padded.
        """
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        handle = self.layers[self.first].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with passing_on(self.layers[self.first + 1 :]):
                decoder(**inputs)
        finally:
            handle.remove()
        made = {ids: states[:length].clone() for ids, length, states in zip(texts, lengths, seen[0], strict=True)}
        self.kept |= made
        while len(self.kept) > MOST:
            del self.kept[next(iter(self.kept))]
        return made


@contextmanager
def from_below(layers: nn.ModuleList, first: int, states: Tensor | None) -> Iterator[None]:
    """Within it layers below `first` do nothing, and layer `first`, its block before it, takes `states` [R, T, D]."""
    if states is None:
        yield
        return

    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    handle = layers[first].register_forward_pre_hook(put, with_kwargs=True, prepend=True)
    try:
        with passing_on(layers[:first]):
            yield
    finally:
        handle.remove()


@contextmanager
def passing_on(layers: Any) -> Iterator[None]:
    """Within it these layers hand on the hidden states that they are given."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def gives_tensors(decoder: nn.Module, layers: nn.ModuleList) -> bool:
    """Do the decoder's layers give hidden states alone, so that a layer can hand on what it is given?"""
    kinds: list[bool] = []
    handle = layers[0].register_forward_hook(lambda _, __, out: kinds.append(isinstance(out, Tensor)))
    try:
        decoder(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=next(decoder.parameters()).device))
    finally:
        handle.remove()
    return kinds == [True]
