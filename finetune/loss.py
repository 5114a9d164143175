"""The loss: next-token cross-entropy on what is learnt, the rest of the vocabulary-sized logits never made.

R rows, T text tokens, D width, V vocabulary, L learnt tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finetune.below import from_below
from finetune.encoded import IGNORED
from mmlm.decoder import find_layers
from mmlm.logits import logits_only
from mmlm.model import MultimodalLM

ROWS = 256  # at a time
VIEWS = {"SqueezeBackward1", "UnsafeViewBackward0", "ViewBackward0"}  # operations whose result is what they were given
FORGETS = {f"{its}Backward0" for its in ("Mm", "Addmm", "Add", "Sub", "Mul", "Div", "ToCopy")}  # need no result


def learnt_loss(forward: nn.Module, model: MultimodalLM, batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Sum of the cross-entropy over the learnt tokens of a batch (fp32), and their number L.

    What hooks keep of the decoder's logits is written over, where they are `spendable`: they keep a copy.

    Args:
        forward: the model, or what a distributed wrapper made of it.
        model: the model itself.
        batch: of a `Collator`, with `labels` [R, T], what each token foretells, and `below`.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")
    ahead = labels != IGNORED
    wanted = labels[ahead]
    layers, first = find_layers(model.decoder), model.config.layers[0]
    with logits_only(model.decoder, ahead), from_below(layers, first, inputs.pop("below")):
        logits = forward(**inputs, use_cache="past_key_values" in inputs).logits.squeeze(0)
    return CrossEntropy.apply(logits, wanted, spendable(logits)), len(wanted)


def spendable(logits: Tensor) -> bool:
    """May logits be written over? Only where the decoder's last operation needs no result of its own in backward.

    torch would not always stop at one that does: a write to an unsafe view, as `linear` gives, it does not count as one
    to what is viewed.
    """
    node = logits.grad_fn
    while node is not None and type(node).__name__ in VIEWS:
        node = node.next_functions[0][0]
    return node is not None and type(node).__name__ in FORGETS


class CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropy of logits [L, V] and ids [L], in fp32.

    What goes back is made along the way, rows at a time: of all that is as wide as the vocabulary only it is kept, in
    the logits' dtype (fp32 for fp16), and in their place where they may be `spent`. torch's own makes and keeps four
    times as much where they are in 16 bits, which takes longer than the product that they come from.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, spent: bool = False) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype  # in which small ones would be lost
        ctx.back, ctx.dtype = None, logits.dtype
        if ctx.needs_input_grad[0]:  # detached it still tells autograd that it is written to
            ctx.back = logits.detach() if spent and kept == logits.dtype else torch.empty_like(logits, dtype=kept)
        for first in range(0, len(logits), ROWS):
            rows = slice(first, first + ROWS)
            ids = wanted[rows, None]
            said = logits[rows].log_softmax(-1, dtype=dtype)
            loss -= said.gather(1, ids).sum()
            if ctx.back is not None:
                ctx.back[rows] = said.exp_().scatter_add_(1, ids, said.new_full(ids.shape, -1.0))
            del said  # before the next
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        back, ctx.back = ctx.back, None
        if back is None:
            raise RuntimeError("a second backward through one loss, whose gradient was given away: compute it again")
        return back.mul_(grads[0]).to(ctx.dtype), None, None
