"""Before the first step the adapter is fitted to the frozen parts, on a few batches and without gradients.

The hidden states of a pretrained decoder are nearly all the same: in SmolLM2, 97% of the power of the last prompt
token's is the mean over all questions, and what a question asks for is a few of the other percent; and they are 10 to
30 times larger than what a fresh layer puts out. So what goes into each block is whitened where tokens are learnt, what
comes out is scaled to the deviation of each channel, and pooled features are whitened, too. docs/findings.md has
the measurements.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.encoded import IGNORED
from mmlm.decoder import find_layers
from mmlm.logits import logits_only
from mmlm.model import MultimodalLM

OPEN = 0.5  # a gate before its tanh
TEXT = ("input_ids", "attention_mask", "position_ids", "past_key_values")


@torch.no_grad()
def calibrate(model: MultimodalLM, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Fits the norms and scales of an untrained adapter to the batches, and opens its gates onto outputs of zero.

    The model is what it was, bit for bit: what a shut gate held back is now zero by itself. But gradients reach the
    weights behind the gate from the first step on; a gate that starts shut first opens onto noise, and then shuts for
    good.

    Returns by how much the output embedding's input rises with each channel of the last block's, in the mean [D]; zeros
    where the two are not of one width.
    """
    values: list[list[Tensor]] = [[] for _ in model.config.channels]
    states: list[list[Tensor]] = [[] for _ in range(len(model.config.layers) + 1)]
    for batch in batches:
        for seen, got in zip(values, batch["media_values"], strict=True):
            seen.append(got.float())
        for seen, got in zip(states, record(model, batch, batch["labels"] != IGNORED), strict=True):
            seen.append(got)
    for norm, seen in zip(model.adapter.media.norms, values, strict=True):
        norm.fit(torch.cat(seen))
    *hidden, said = map(torch.cat, states)
    for block, its in zip(model.adapter.blocks, hidden, strict=True):
        block.norm.fit(its)
        block.ff_norm.fit(its)
        block.scale.copy_(its.std(0))
        for gate, output in ((block.attention_gate, block.o), (block.ff_gate, block.down)):
            gate.fill_(OPEN)
            output.weight.zero_()
    last = hidden[-1] - hidden[-1].mean(0)
    if last.shape != said.shape:
        return torch.zeros(last.shape[1], device=last.device)
    return (last * said).mean(0) / last.square().mean(0).clamp(min=1e-12)


def record(model: MultimodalLM, batch: dict[str, Any], where: Tensor) -> list[Tensor]:
    """What goes into each block, and last into the output embedding, at L tokens `where` bool [R, T], blind: [L, D]."""
    layers = find_layers(model.decoder)
    states: list[Tensor] = []

    def block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.movedim(0, 2) if model.splice.streams_first else hidden
        states.append(hidden[where].float().reshape(-1, model.config.hidden))  # each of several residual streams

    def output(_: nn.Module, args: tuple[Tensor]) -> None:
        states.append(args[0].flatten(0, 1).float())

    with logits_only(model.decoder, where):
        handles = [layers[n].register_forward_pre_hook(block, with_kwargs=True) for n in model.config.layers]
        handles.append(model.decoder.get_output_embeddings().register_forward_pre_hook(output))
        try:
            text = {key: batch[key] for key in TEXT if key in batch}
            model.decoder(**text, use_cache="past_key_values" in text)
        finally:
            for handle in handles:
                handle.remove()
    return states
