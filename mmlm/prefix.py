"""Text before the first image is the base decoder's, whatever the adapter learns: its keys and values are kept.

A prompt that asks first and shows the image then is nearly all prefix. All samples with the same question share it, and
a training step or a prefill is left with the few tokens that see the image. Logits and gradients are those of the whole
text.

R rows, P tokens of the longest prefix, T of the longest rest, K heads of a layer's keys or values, d their width, W all
numbers of a token's keys and values.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from mmlm.cache import make_room
from mmlm.decoder import home
from mmlm.kept import Kept, Parts
from mmlm.marked import Marked

MOST = 1024  # prefixes kept; one of SmolLM2's with 15 tokens takes 0.4 MB


def blind(text: Marked) -> int:
    """Tokens before the first that sees an image, or foretells what is learnt or what is said next."""
    seeing = next((place for place, image in enumerate(text.index) if image >= 0), len(text.ids))
    return min(seeing, text.prompt - 1)


class Prefixes(Kept):
    """Keys and values of all layers [P, W] of prefixes (ids,)."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__(MOST)
        self.decoder = decoder
        probe = DynamicCache(config=decoder.config)
        self.usable = all(type(layer) is DynamicLayer for layer in probe.layers)
        """False for decoders that keep more than keys and values (recurrent states, sliding windows)."""
        self.shapes: list[tuple[int, int]] = []
        """K and d of each layer's keys and values, in turn: they need not be alike."""

    def compute(self, texts: Sequence[Parts], widths: Sequence[int]) -> Iterable[Tensor]:
        # right-padded, so that no token of a prefix can attend to the padding
        tokens = torch.tensor([pad_ids(ids, *widths) for (ids,) in texts], device=home(self.decoder))
        layers = self.decoder.get_decoder()(input_ids=tokens, use_cache=True).past_key_values.layers
        seen = [tensor for layer in layers for tensor in (layer.keys, layer.values)]  # [R, K, P, d]
        self.shapes = [(tensor.shape[1], tensor.shape[3]) for tensor in seen]
        whole = torch.cat([tensor.transpose(1, 2).flatten(2) for tensor in seen], -1)  # [R, P, W]
        return [whole[row, : len(ids)].clone() for row, (ids,) in enumerate(texts)]

    def cache(self, rows: Sequence[tuple[int, ...]], width: int) -> DynamicCache:
        """A cache that has seen a prefix in each row, left-padded to `width`; one at least is not empty."""
        longest = max(rows, key=len)
        # a row without a prefix takes none of another's, all padding
        kept = zip(rows, self([(ids or longest,) for ids in rows]), strict=True)
        parts = [pad(whole[: len(ids)], (0, 0, width - len(ids), 0)) for ids, whole in kept]
        whole = torch.stack(parts).to(home(self.decoder))  # which may have moved since they were kept
        pieces = whole.split([heads * size for heads, size in self.shapes], -1)
        tensors = [piece.unflatten(-1, shape).transpose(1, 2) for piece, shape in zip(pieces, self.shapes, strict=True)]
        cache = DynamicCache()
        make_room(cache)
        for number, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
            cache.update(keys, values, number)
        return cache

    def past(self, rows: Sequence[Marked]) -> dict[str, DynamicCache]:
        """`past_key_values` of the first columns of a left-padded batch, as many as are blind in every row; or {}."""
        rest = max(len(row.ids) - blind(row) for row in rows)
        before = [tuple(row.ids[:-rest]) for row in rows]
        return {"past_key_values": self.cache(before, max(map(len, before)))} if self.usable and any(before) else {}

    def rests(self, texts: Sequence[Parts], widths: Sequence[int] = (0, 0)) -> dict[str, Any]:
        """The rests of texts (prefix, rest) as the decoder takes them, right-padded, with what it remembers before.

        input_ids and position_ids [R, T], attention_mask [R, P + T], and `past_key_values` if there is any prefix. P
        and T are the longest, and at least `widths` (P is 0 where no text has a prefix). What it remembers is good for
        one forward, which adds to it.
        """
        P, T = (max(least, *map(len, part)) for least, part in zip(widths, zip(*texts, strict=True), strict=True))
        ids = torch.tensor([pad_ids(rest, T) for _, rest in texts])
        lengths = torch.tensor([[len(before), len(rest)] for before, rest in texts])
        columns = torch.arange(-P, T)
        inputs = {
            "input_ids": ids,
            "position_ids": lengths[:, :1] + columns[P:],
            "attention_mask": ((columns >= -lengths[:, :1]) & (columns < lengths[:, 1:])).long(),
        }
        inputs = {name: tensor.to(home(self.decoder)) for name, tensor in inputs.items()}
        return inputs | ({"past_key_values": self.cache([before for before, _ in texts], P)} if P else {})


def pad_ids(ids: Sequence[int], width: int) -> list[int]:
    """Token ids, and zeros up to the width."""
    return [*ids, *[0] * (width - len(ids))]
