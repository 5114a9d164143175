"""The layers below the first gated block see text alone: what leaves them is kept, text by text.

A sample that comes again, or another with the same question and answer, costs the layers from the first block on and no
others. R rows, T text tokens, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.decoder import find_layers
from mmlm.kept import Kept, Parts
from mmlm.model import MultimodalLM
from mmlm.prefix import Prefixes
from mmlm.swapped import swapped

MOST = 4096  # pieces of texts kept; one of 9 tokens takes 10 kB with SmolLM2


class Below(Kept):
    """Hidden states [T, D] of rests of texts (prefix, rest) before the layer of the model's first block."""

    def __init__(self, model: MultimodalLM) -> None:
        super().__init__(MOST)
        self.decoder = model.decoder.get_decoder()
        self.layers, self.first = find_layers(model.decoder), model.config.layers[0]
        self.prefixes = Prefixes(model.decoder)
        self.usable = self.first > 0 and self.prefixes.usable and gives_tensors(self.decoder, self.layers)

    def states(self, texts: Sequence[Parts]) -> list[Tensor]:
        """The states of texts (prefix, rest of the prompt, answer) but for their prefixes.

        What follows the prefix is kept in two pieces: all captions share what their prompt ends with.
        """
        pieces = [piece for text in texts for piece in parted(text)]
        self.prefixes([(piece[0],) for piece in pieces if piece[0] and piece not in self.kept])
        states = dict(zip(pieces, self(pieces), strict=True))
        return [torch.cat([states[piece] for piece in parted(text)]) for text in texts]

    def keeps(self, texts: Sequence[Parts]) -> bool:
        """Is all of the texts kept?"""
        return all(piece in self.kept for text in texts for piece in parted(text))

    def compute(self, texts: Sequence[Parts], widths: Sequence[int]) -> Iterable[Tensor]:
        inputs = self.prefixes.rests(texts, widths)  # may run all layers
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        handle = self.layers[self.first].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with passing_on(self.layers[self.first :]):
                self.decoder(**inputs)
        finally:
            handle.remove()
        return [states[: len(rest)].clone() for (_, rest), states in zip(texts, seen[0], strict=True)]


def parted(text: Parts) -> list[Parts]:
    """A text (prefix, rest of prompt, answer) -> (prefix, rest of prompt) and, if it is answered, (prompt, answer)."""
    before, seeing, answer = text
    pieces: list[Parts] = [(before, seeing), (before + seeing, answer)]
    return pieces if answer else pieces[:1]


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

    with swapped(dict.fromkeys(layers, forward)):
        yield


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
