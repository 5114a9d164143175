"""Before the first step the adapter is fitted to the frozen parts, on a few batches and without gradients.

The hidden states of a pretrained decoder are nearly all the same: in SmolLM2, 97% of the power of the last prompt token's
is the mean over all questions, and what a question asks for is a few of the other percent; and they are 10 to 30 times
larger than what a fresh layer puts out. So what goes into each block is whitened where tokens are learnt, what comes out is
scaled to the deviation of each channel, and pooled features are centred and scaled. docs/findings.md has the measurements.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.batches import IGNORED
from mmlm.decoder import find_layers
from mmlm.model import MultimodalLM


@torch.no_grad()
def calibrate(model: MultimodalLM, batches: Iterable[dict[str, Any]]) -> None:
    """Fits the norms and scales of an untrained adapter to the batches."""
    hidden: list[list[Tensor]] = [[] for _ in model.config.layers]
    values: list[list[Tensor]] = [[] for _ in model.config.channels]
    for batch in batches:
        for seen, got in zip(values, batch["media_values"], strict=True):
            seen.append(got.float())
        ahead = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
        record(model, batch, ahead, hidden)
    for norm, seen in zip(model.adapter.media.norms, values, strict=True):
        norm.fit(torch.cat(seen))
    for block, seen in zip(model.adapter.blocks, hidden, strict=True):
        states = torch.cat(seen)
        block.norm.fit(states)
        block.ff_norm.fit(states)
        block.scale.copy_(states.std(0))


def record(model: MultimodalLM, batch: dict[str, Any], where: Tensor, hidden: list[list[Tensor]]) -> None:
    """Adds what goes into each block at the tokens `where`, blind, to `hidden`."""
    layers = find_layers(model.decoder)
    handles = []
    for seen, number in zip(hidden, model.config.layers, strict=True):

        def keep(_: nn.Module, args: Any, kwargs: Any, seen: list[Tensor] = seen) -> None:
            seen.append((args[0] if args else kwargs["hidden_states"])[where].float())

        handles.append(layers[number].register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model.decoder.get_decoder()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )
    finally:
        for handle in handles:
            handle.remove()
