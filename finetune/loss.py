"""The loss: next-token cross-entropy on what is learnt, the rest of the vocabulary-sized logits never made.

R rows, T text tokens, D width, V vocabulary, L learnt tokens.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finetune.below import from_below
from finetune.encoded import IGNORED
from mmlm.decoder import find_layers
from mmlm.logits import logits_only
from mmlm.model import MultimodalLM


def learnt_loss(forward: nn.Module, model: MultimodalLM, batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Sum of the cross-entropy over the learnt tokens of a batch (fp32), and their number L.

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
        logits = forward(**inputs, use_cache="past_key_values" in inputs).logits[0]
    return cross_entropy(logits.float(), wanted, reduction="sum"), len(wanted)
