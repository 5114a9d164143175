"""Media: what a batch sees where.

A batch has R rows of text and I distinct images, each of which any rows may show, any number of times, in any order.

    pixel_values   uint8 [P, 3, 512, 512]   all pictures of all images   } either
    media_cells    per map int64 [N, 2]     (picture, cell) to pool      }
    media_values   per map [N, C]           features, pooled before      } or
    media_places   int64 [sum of N, 3]      slot, tile row, tile column of each embedding, in the order of the maps
    media_gather   int64 [R, S]             which of those embeddings each row shows, padded with 0
    media_owner    int64 [R, S]             which image of its row (0, 1, ...) each belongs to; -1: padding
    media_index    int64 [R, T]             which image of its row each text token saw last; -1: none yet

R rows, T text tokens, S media embeddings of a row, N embeddings from one feature map, C its channels.
"""

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmlm.adapter import Adapter
from mmlm.block import Folded
from mmlm.recompute import again
from vision.encoder import Features, Prepared

KEYS = (
    "pixel_values",
    "media_cells",
    "media_values",
    "media_places",
    "media_gather",
    "media_owner",
    "media_index",
)


def collate(images: Sequence[Features] | Sequence[Prepared], rows: list[list[int]], index: Tensor) -> dict[str, Any]:
    """The media part of a batch; {} if no row shows an image.

    Args:
        images: the distinct images.
        rows: for each row, which of them it shows, in order.
        index: `media_index` [R, T].
    """
    if not any(rows):
        return {}
    places = [image.places for image in images]
    maps = range(len(places[0]))
    owners = [torch.cat([torch.full((len(its[m]),), i) for i, its in enumerate(places)]) for m in maps]
    flat_owner = torch.cat(owners)  # which image each embedding of the batch is of
    mine = [torch.nonzero(flat_owner == i).flatten() for i in range(len(images))]
    gather = [torch.cat([mine[i] for i in row]) if row else torch.zeros(0, dtype=torch.int64) for row in rows]
    owner = [
        torch.cat([torch.full_like(mine[i], place) for place, i in enumerate(row)])
        if row
        else torch.zeros(0, dtype=torch.int64)
        for row in rows
    ]
    batch: dict[str, Any] = {
        "media_places": torch.cat([torch.cat([its[m] for its in places]) for m in maps]),
        "media_gather": pad_sequence(gather, batch_first=True),
        "media_owner": pad_sequence(owner, batch_first=True, padding_value=-1),
        "media_index": index,
    }
    values = [image.values for image in images if isinstance(image, Features)]
    if len(values) == len(images):
        batch["media_values"] = tuple(torch.cat(parts) for parts in zip(*values, strict=True))
        return batch
    first = 0
    pixels: list[Tensor] = []
    cells: list[list[Tensor]] = [[] for _ in maps]
    for image in images:
        assert isinstance(image, Prepared)
        pixels.append(image.pixels)
        for m in maps:
            cells[m].append(image.cells[m] + torch.tensor([first, 0]))
        first += len(image.pixels)
    batch["pixel_values"] = torch.cat(pixels)
    batch["media_cells"] = tuple(torch.cat(parts) for parts in cells)
    return batch


def casting(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which the adapter, of fp32 weights, multiplies in 16 bits if its decoder does."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


class View:
    """The media of one call of the model (a forward, or a whole generation) as its gated blocks see them.

    Keys and values are computed once per block, however many tokens are generated.
    """

    def __init__(
        self,
        adapter: Adapter,
        media: Tensor,
        batch: dict[str, Any],
        attend: str,
        dtype: torch.dtype,
        recompute: bool = False,
    ) -> None:
        self.adapter, self.media, self.attend, self.dtype, self.recompute = adapter, media, attend, dtype, recompute
        self.gather, self.owner, self.index = batch["media_gather"], batch["media_owner"], batch["media_index"]
        self.kv: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.folded: dict[int, Folded] = {}
        self.here: tuple[int, int, int] | None = None
        self.sees: Tensor | None = None
        self.mask: Tensor | None = None
        self.blind = True

    def move(self, past: int, length: int, rows: int) -> None:
        """Makes ready for the tokens past .. past + length of `rows` rows, a multiple of ours (beams, samples).

        A token beyond the prompt sees what the prompt's last token sees.
        """
        last = self.index.shape[1] - 1
        here = (min(past, last), length, rows)
        if here == self.here:  # as for every token but the first of a generation
            return
        self.here = here
        columns = torch.arange(past, past + length, device=self.index.device).clamp(max=last)
        index = self.index[:, columns]  # [R, T]
        sees = index >= 0
        self.blind = not bool(sees.any())
        if self.blind:
            return
        owner, latest = self.owner[:, None, :], index[:, :, None]
        mask = (owner == latest) if self.attend == "latest" else (owner >= 0) & (owner <= latest)
        mask |= ~sees[:, :, None]  # what such a token would get is dropped: this keeps NaN out
        copies = rows // len(self.index)
        self.sees = None if bool(sees.all()) else sees.repeat_interleave(copies, 0)
        self.mask = None if bool(mask.all()) else mask.repeat_interleave(copies, 0)

    def look(self, block: int, hidden: Tensor) -> Tensor:
        """Hidden states [rows, T, D] before a decoder layer -> the same after gated block number `block`."""
        if self.blind:
            return hidden
        gated, copies = self.adapter.blocks[block], hidden.shape[0] // len(self.index)
        if torch.is_grad_enabled():
            with casting(hidden.device, self.dtype):
                run = partial(again, gated) if self.recompute else gated
                return run(hidden, *self.keys_values(block, copies), self.mask, self.sees)
        k, v = self.keys_values(block, copies)
        if block not in self.folded:  # once, as keys and values are: it looks at the block's weights
            self.folded[block] = gated.folded(v.dtype)
        return self.folded[block](hidden, k, v, self.mask, self.sees)

    def keys_values(self, block: int, copies: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, K, S, d] of the block, each row `copies` times."""
        if (block, copies) not in self.kv:
            with casting(self.media.device, self.dtype):
                k, v = self.adapter.blocks[block].keys_values(self.media)
            gather = self.gather.repeat_interleave(copies, 0)
            k, v = (x.index_select(0, gather.flatten()).unflatten(0, gather.shape) for x in (k, v))
            self.kv[block, copies] = k.transpose(1, 2), v.transpose(1, 2)
        return self.kv[block, copies]

    def at(self, index: Tensor) -> "View":
        """The same media, their keys and values shared, seen by the tokens of another text: `media_index` [R, T]."""
        other = copy(self)
        other.index, other.here, other.folded = index, None, {}
        return other

    def joined(self, new: "View", before: int) -> "View":
        """The media of one row, and `new` ones of the same row after them; of the old no keys and values are computed.

        Args:
            before: images of the row before the new ones.
        """
        other = copy(self)
        other.media = torch.cat([self.media, new.media])
        other.gather = torch.cat([self.gather, new.gather + len(self.media)], 1)
        other.owner = torch.cat([self.owner, new.owner + before], 1)
        other.kv, other.here, other.folded = {}, None, {}
        for (block, copies), pair in self.kv.items():
            more = new.keys_values(block, copies)
            other.kv[block, copies] = torch.cat([pair[0], more[0]], 2), torch.cat([pair[1], more[1]], 2)
        return other
