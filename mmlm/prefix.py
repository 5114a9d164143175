"""Text before the first image is the base decoder's, whatever the adapter learns: its keys and values are kept.

A prompt that asks first and shows the image then is nearly all prefix. All samples with the same question share it, and
a training step or a prefill is left with the few tokens that see the image. Logits and gradients are those of the whole
text.

R rows, P tokens of the longest prefix, L layers, K key heads, d width of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from mmlm.processor import Marked

MOST = 1024  # prefixes kept; one of SmolLM2's with 15 tokens takes 0.4 MB


def blind(text: Marked, learnt: int = 0) -> int:
    """Tokens before the first that sees an image, or foretells one of the `learnt` last or what is said next."""
    seeing = next((place for place, image in enumerate(text.index) if image >= 0), len(text.ids))
    return min(seeing, len(text.ids) - learnt - 1)


class Prefixes:
    """Keys and values of prefixes, kept once computed."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        self.decoder = decoder
        self.kept: dict[tuple[int, ...], Tensor] = {}  # the oldest first
        probe = DynamicCache(config=decoder.config)
        self.usable = all(type(layer) is DynamicLayer for layer in probe.layers)
        """False for decoders that keep more than keys and values (recurrent states, sliding windows)."""

    @torch.no_grad()
    def __getitem__(self, ids: tuple[int, ...]) -> Tensor:
        """Keys and values [L, 2, K, P, d] of one prefix."""
        if ids not in self.kept:
            tokens = torch.tensor([ids], device=self.decoder.device)
            cache = self.decoder.get_decoder()(input_ids=tokens, use_cache=True).past_key_values
            while len(self.kept) >= MOST:
                del self.kept[next(iter(self.kept))]
            self.kept[ids] = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
        return self.kept[ids]

    def cache(self, rows: Sequence[tuple[int, ...]]) -> DynamicCache:
        """A cache that has seen a prefix in each row, left-padded; at least one is not empty."""
        longest = max(rows, key=len)
        # a row without a prefix is given none of another's, all padding
        parts = [pad(self[ids or longest][..., : len(ids), :], (0, 0, len(longest) - len(ids), 0)) for ids in rows]
        cache = DynamicCache()
        for number, layer in enumerate(torch.stack(parts, dim=2)):  # [L, 2, R, K, P, d]
            cache.update(layer[0], layer[1], number)
        return cache

    def past(self, rows: Sequence[Marked]) -> dict[str, DynamicCache]:
        """`past_key_values` of the first columns of a left-padded batch, as many as are blind in every row; or {}."""
        rest = max(len(row.ids) - blind(row) for row in rows)
        before = [tuple(row.ids[:-rest]) for row in rows]
        return {"past_key_values": self.cache(before)} if self.usable and any(before) else {}
