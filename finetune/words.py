"""Before the first step the media learn words: which tokens of an answer an image calls for, wherever they are in it.

Through a frozen decoder a gated block is slow to learn the names of what it sees: one batch brings a few of hundreds of
names, and all of them pull at the same matrices. Without the decoder it is quick: every media embedding votes for
words, the exponentials of an image's votes are added up, and the words of its answers are to win. (Bags of words as
targets: Joulin et al. 2016, "Learning Visual Features from Large Weakly Supervised Data", arXiv:1511.02251.) What was
learnt is then written into the last block, whose values come out as a push towards those words. docs/findings.md has
the measurements.

N embeddings of a batch, R rows, S embeddings of a row, L learnt tokens of a row, W words, M width of an embedding, D of
the decoder, K key heads, G query heads of each, d width of a head.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.clip_grad import clip_grad_norm_

from finetune.encoded import IGNORED
from mmlm.block import GatedBlock
from mmlm.decoder import gathered
from mmlm.media import casting
from mmlm.model import MultimodalLM

LR = 2e-3
WEIGHT_DECAY = 0.05
RIDGE = 0.03  # share of the mean square of the words' directions


@dataclass(frozen=True)
class Words:
    """ids [W] of the decoder's tokens, and the votes [W, M] that embeddings cast for each."""

    ids: Tensor
    votes: Tensor


def learn_words(model: MultimodalLM, ids: list[int], batches: Iterable[dict[str, Any]], steps: int) -> Words:
    """Trains the media projection, and one vote for each of the words `ids`, on `steps` batches of `Collator.shown`.

    FloatingPointError for features that are not finite.
    """
    place = torch.full((max(ids) + 2,), IGNORED, device=model.device)  # the last is of all other tokens
    place[ids] = torch.arange(len(ids), device=model.device)
    head = nn.Linear(model.config.media_dim, len(ids), device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    trained = [*model.adapter.media.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / 20, 1 - 0.95 * step / steps)
        if not len(labels := batch["labels"]):
            continue
        targets = place[labels.clamp(-1, len(place) - 1)]  # [R, L]
        known = targets != IGNORED
        scores = votes_of(model, head, batch).log_softmax(1).gather(1, targets.where(known, 0))  # [R, L]
        loss = -scores[known].sum() / known.sum().clamp(min=1)
        if not loss.isfinite():
            raise FloatingPointError(
                f"batch {step} of the words: loss {loss.item()}; are its images' features numbers?"
            )
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.adapter.zero_grad()
    return Words(torch.tensor(ids, device=model.device), head.weight.detach())


def votes_of(model: MultimodalLM, head: nn.Linear, batch: dict[str, Any]) -> Tensor:
    """The words' logits [R, W] of each row of a batch: exponentials of votes, summed over what the row sees."""
    with casting(model.device, model.decoder.dtype):
        embeddings = model.adapter.media([value.float() for value in batch["media_values"]], batch)
        votes = head(embeddings)
    seen = batch["media_gather"].where(batch["media_owner"] >= 0, -1)  # [R, S]
    sets, row = seen.unique(dim=0, return_inverse=True)  # rows that show the same are added up once
    chosen = votes.float().index_select(0, sets.clamp(min=0).flatten()).unflatten(0, sets.shape)
    pooled = chosen.masked_fill(sets[..., None] < 0, -torch.inf).logsumexp(1)
    return pooled.index_select(0, row)


@torch.no_grad()
def speak(model: MultimodalLM, words: Words, reach: Tensor) -> None:
    """Writes the votes into the last block's values and output: what it sees, the decoder is the likelier to say.

    The push x for an embedding m is such that the output embedding's logits rise by the votes, U (reach * x) = votes m,
    in least squares; of its directions the block has room for the largest, as many as its key heads are wide. What a
    decoder does to logits after the output embedding (scaling, soft caps) is not reckoned with.

    Args:
        reach: by how much the output embedding's input rises with each channel of that block's [D].
    """
    block: GatedBlock = model.adapter.blocks[-1]
    directions = gathered(model.decoder.get_output_embeddings().weight)[words.ids].float()
    directions = (directions - directions.mean(0)) * reach  # [W, D]; what lifts all words alike says nothing
    votes = words.votes.float() - words.votes.float().mean(0)
    if not votes.any() or not reach.any():
        return
    square = directions.T @ directions
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), device=square.device)
    push = torch.linalg.solve(square + ridge, directions.T @ votes)  # [D, M]
    unit = torch.tanh(block.attention_gate) * block.scale
    push = torch.where(unit[:, None] > 0, push / unit[:, None], 0)
    left, size, right = torch.linalg.svd(push, full_matrices=False)
    # every head gets large and small directions; where there are too few of them, places stay empty
    order = torch.arange(block.K * block.d, device=size.device).view(block.d, block.K).T.flatten()
    places, order = order < len(size), order[order < len(size)]
    values, output = size.sqrt()[order, None] * right[order], left[:, order] * size.sqrt()[order]
    rise = block.v.weight.square().mean().sqrt() / values.square().mean().sqrt()
    block.v.weight[places] = values * rise
    wide = torch.zeros(len(output), len(places), device=output.device)
    wide[:, places] = output / rise
    heads = wide.unflatten(1, (block.K, 1, block.d))  # the query heads of a key head share what it says
    groups = block.o.in_features // (block.K * block.d)
    block.o.weight.copy_(heads.expand(-1, -1, groups, -1).flatten(1) / groups)
