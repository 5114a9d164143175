"""A probe: what can be read off the embeddings themselves, by a small head, without a decoder.

The head is made of the adapter's own parts: the media projection (or whatever else the token configuration puts between
features and embeddings) and gated blocks, in which a query for every card's place looks at the embeddings, as a text
token would. What it cannot tell, a decoder behind such an adapter will hardly tell.

R pictures, k cards on a side, T cards asked of a picture, W width.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from eval.cards import COLORS, SYMBOLS, Card, Cards
from finetune.calibrate import OPEN
from finetune.encoded import IGNORED
from finetune.optim import adamw, schedule
from finetune.zener_config import ProbeConfig
from mmlm.adapter import Adapter
from mmlm.block import RMSNorm
from mmlm.config import AdapterConfig
from mmlm.media import View, casting
from mmlm.samples import media_of
from vision.features import FeatureCache

PARTS = tuple(COLORS), tuple(SYMBOLS)  # what is told of a card, in this order
WAVES = 6  # frequencies by which a query knows its place
FIT = 8  # batches that the norms are fitted to
SCORED = 64  # pictures at a time


@dataclass(frozen=True)
class Shown:
    """A picture of cards whose features are in the cache."""

    deck: Cards
    key: str


class Probe(nn.Module):
    """From features of pictures of cards to the logits of each card's color and symbol.

    Args:
        config: of an adapter with as many blocks as the probe is to have; its width is the probe's.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = Adapter(config)
        self.place = nn.Linear(4 * WAVES + 1, config.hidden)
        self.query = nn.Linear(config.hidden, config.hidden)
        self.norm = RMSNorm(config.hidden)
        self.told = nn.Linear(config.hidden, sum(map(len, PARTS)))
        with torch.no_grad():
            for block in self.adapter.blocks:
                block.attention_gate.fill_(OPEN)
                block.ff_gate.fill_(OPEN)

    def forward(self, media: dict[str, Any], places: Tensor) -> tuple[Tensor, ...]:
        """A batch's media and places [R, T, 3] (of `places_of`) -> logits of colors and of symbols [R, T, ...]."""
        dtype = media["media_values"][0].dtype
        hidden = self.query(gelu(self.place(waves(places))))
        with casting(hidden.device, dtype):
            values = [value.float() for value in media["media_values"]]
            embeddings = self.adapter.media(values, media)
        view = View(self.adapter, embeddings, media, self.config.attend, dtype)
        view.move(0, hidden.shape[1], hidden.shape[0])
        for block in range(len(self.adapter.blocks)):
            hidden = view.look(block, hidden)
        return self.told(self.norm(hidden)).split(list(map(len, PARTS)), -1)


def waves(places: Tensor) -> Tensor:
    """places [..., 3] -> [..., 4 * WAVES + 1]: sines and cosines of x and y, and the size of a cell."""
    scales = math.pi * 2.0 ** torch.arange(WAVES)
    angles = (places[..., :2, None] * scales).flatten(-2)
    return torch.cat([angles.sin(), angles.cos(), places[..., 2:]], -1)


def places_of(k: int) -> Tensor:
    """Where the cards of a grid are [k * k, 3]: x and y of their middles and the side of a cell, all in 0..1."""
    middles = (torch.arange(k) + 0.5) / k
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.full((k * k,), 1 / k)], 1)


def batch_of(
    cache: FeatureCache, shown: Sequence[Shown], chosen: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Pictures and the `chosen` cards of each, T at the most -> media, places [R, T, 3], cards [R, T, 2] (-100: none).

    A card is its color and its symbol, each counted from 0.
    """
    places = [places_of(its.deck.k)[list(some)] for its, some in zip(shown, chosen, strict=True)]
    cards = [
        torch.tensor([[part.index(word) for part, word in zip(PARTS, its.deck.cards[n], strict=True)] for n in some])
        for its, some in zip(shown, chosen, strict=True)
    ]
    padded = pad_sequence(places, batch_first=True)
    index = torch.zeros(padded.shape[:2], dtype=torch.int64)
    media = media_of(cache, [(its.key,) for its in shown], index)
    return media, padded, pad_sequence(cards, batch_first=True, padding_value=IGNORED)


def train_probe(
    config: AdapterConfig, cache: FeatureCache, shown: Sequence[Shown], settings: ProbeConfig, seed: int, say: str
) -> tuple[Probe, float]:
    """A probe trained on the pictures, and the seconds it took. What is drawn follows from the seed alone.

    Every picture of a batch weighs the same, however many of its cards are asked for. FloatingPointError for a loss
    that is not finite.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(config)

    def drawn(step: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        dice = random.Random(f"{seed} {step}")
        some = dice.sample(shown, min(settings.batch, len(shown)))
        return batch_of(
            cache, some, [dice.sample(range(its.deck.k**2), min(settings.cards, its.deck.k**2)) for its in some]
        )

    first = [drawn(-1 - step)[0]["media_values"] for step in range(FIT)]
    for norm, values in zip(probe.adapter.media.norms, zip(*first, strict=True), strict=True):
        norm.fit(torch.cat(values).float())
    optimizer = adamw(probe.named_parameters(), settings.optim)
    with tqdm(range(settings.steps), desc=f"{say}: probe", unit="step") as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = settings.optim.lr * schedule(step, settings.steps, settings.optim)
            media, places, cards = drawn(step)
            there = (cards[..., 0] != IGNORED).float()
            loss = torch.zeros(())
            for part, logits in enumerate(probe(media, places)):
                each = cross_entropy(logits.float().movedim(-1, 1), cards[..., part], reduction="none")
                loss = loss + (each.sum(1) / there.sum(1)).mean()
            if not loss.isfinite():
                raise FloatingPointError(f"{say}: loss {loss.item()} at step {step}; lower --probe.optim.lr")
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), settings.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}")
    return probe.eval(), time.perf_counter() - started


@torch.no_grad()
def tell(probe: Probe, cache: FeatureCache, shown: Sequence[Shown]) -> list[list[Card | None]]:
    """What the probe takes the cards of each picture for."""
    said: list[list[Card | None]] = []
    for start in range(0, len(shown), SCORED):
        some = shown[start : start + SCORED]
        media, places, _ = batch_of(cache, some, [range(its.deck.k**2) for its in some])
        best = [logits.argmax(-1).tolist() for logits in probe(media, places)]
        for its, colors, symbols in zip(some, *best, strict=True):
            pairs = list(zip(colors, symbols, strict=True))[: its.deck.k**2]
            said.append([(PARTS[0][color], PARTS[1][symbol]) for color, symbol in pairs])
    return said
