"""How likely a model holds texts: the log-probability of what is learnt in each, all that stands before it given.

R rows, T text tokens, V vocabulary, L learnt tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BatchFeature

from mmlm.logits import logits_only
from mmlm.marked import Marked
from mmlm.media import collate
from mmlm.model import MultimodalLM
from vision.images import ImageError, Source


class Likelihood(NamedTuple):
    """Of the learnt tokens of one text."""

    total: float
    """Sum of their log-probabilities, natural logarithms."""
    tokens: int
    """How many they are."""
    greedy: bool
    """Is each of them what the model holds most likely there?"""


@torch.no_grad()
def log_likelihoods(
    model: MultimodalLM, texts: Sequence[Marked], media: Callable[[Tensor], dict[str, Any]]
) -> list[Likelihood]:
    """Of each text, in one forward of all; logits are made of nothing but what foretells a learnt token.

    Args:
        texts: tokens of which some are learnt, as `processor.read(prompt, images, answer)` and `mmlm.samples.asked` of
            an answered sample give them.
        media: from `media_index` [R, T] to the media part of the batch: `partial(media_of, cache, keys)` for images in
            the feature cache, `partial(media_shown, model, images)` for others.

    ValueError for a text whose first token is learnt: nothing foretells it.
    """
    ids, mask, index = model.processor.pad(texts, "right")
    ahead = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        if text.learnt and text.prompt == 0:
            raise ValueError(
                f"text {row} is learnt from its first token on, which nothing foretells; begin with a prompt"
            )
        for start, stop in text.learnt:
            ahead[row, start - 1 : stop - 1] = True
    batch = BatchFeature({"input_ids": ids, "attention_mask": mask} | media(index)).to(model.device)
    with logits_only(model.decoder, ahead):
        logits = model(**batch, use_cache=False).logits[0].float()  # [L, V]
    wanted = torch.tensor([token for text in texts for token in text.taught], dtype=torch.int64, device=logits.device)
    each = -cross_entropy(logits, wanted, reduction="none").double()
    first = logits.argmax(-1) == wanted
    counts = [text.answer for text in texts]
    return [
        Likelihood(its.sum().item(), len(its), bool(right.all()))
        for its, right in zip(each.split(counts), first.split(counts), strict=True)
    ]


def media_shown(model: MultimodalLM, rows: Sequence[Sequence[Source]], index: Tensor) -> dict[str, Any]:
    """The media part of a batch whose rows show these images, each encoded once; index is `media_index` [R, T].

    ImageError for one that cannot be opened.
    """
    distinct = {id(image): image for row in rows for image in row}
    features = []
    for one in model.vision.encode_all(distinct.values()):
        if isinstance(one, ImageError):
            raise one
        features.append(one)
    numbers = {key: number for number, key in enumerate(distinct)}
    return collate(features, [[numbers[id(image)] for image in row] for row in rows], index, model.vision.pyramid)
