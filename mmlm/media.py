"""Media: what a batch sees where.

A batch has R rows of text and I distinct images, each of which any rows may show, any number of times, in any order.

    pixel_values   uint8 [P, 3, 512, 512]   all pictures of all images   } either
    pixel_extents  int64 [P, 2]             width, height of the image   } of these
    media_cells    per map int64 [N, 2]     (picture, cell) to pool      }
    media_values   per map [N, C]           features, pooled before      } or
    media_places   int64 [sum of N, 3]      slot, tile row, tile column of each cell, in the order of the maps
    media_gather   int64 [R, S]             which embeddings each row shows, padded with 0
    media_owner    int64 [R, S]             which image of its row (0, 1, ...) each belongs to; -1: padding
    media_index    int64 [R, T]             which image of its row each text token saw last; -1: none yet

A cell is an embedding, and has its number, unless a resampler makes the embeddings: first 85 of each image's overview,
then 170 of each tile, image by image. For those there are two keys more:

    media_reads    int64 [sum of N]         where each cell stands: overviews, then tiles, each with its padding
    media_views    int64 ([I, 2], [K, 2])   tile row and column of each overview (0, 0) and of each of all K tiles

R rows, T text tokens, S media embeddings of a row, N cells of one feature map, C its channels.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmlm.adapter import IMAGES, Adapter
from mmlm.block import Folded
from mmlm.resampler import views_of
from vision.encoder import Features, Prepared
from vision.pyramid import Pyramid

EYES = ("pixel_values", "pixel_extents", "media_cells")  # what the vision encoder takes, in its order
KEYS = (
    *EYES,
    "media_values",
    "media_places",
    "media_reads",
    "media_views",
    "media_gather",
    "media_owner",
    "media_index",
)


def collate(
    images: Sequence[Features] | Sequence[Prepared], rows: list[list[int]], index: Tensor, pyramid: Pyramid
) -> dict[str, Any]:
    """The media part of a batch; {} if no row shows an image.

    Args:
        images: the distinct images.
        rows: for each row, which of them it shows, in order.
        index: `media_index` [R, T].
        pyramid: by which the images were pooled.
    """
    if not any(rows):
        return {}
    places = [image.places for image in images]
    maps = range(len(places[0]))
    views: dict[str, Any] = {}
    counts: Sequence[tuple[int, ...]] = [tuple(map(len, its)) for its in places]  # of each image's embeddings
    if pyramid.resampled:
        counts, views = views_of(places, pyramid.cells)
    owners = [torch.full((count,), i) for part in zip(*counts, strict=True) for i, count in enumerate(part)]
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
        **views,
    }
    values = [image.values for image in images if isinstance(image, Features)]
    if len(values) == len(images):
        batch["media_values"] = tuple(torch.cat(parts) for parts in zip(*values, strict=True))
        return batch
    first = 0
    pixels: list[Tensor] = []
    extents: list[Tensor] = []
    cells: list[list[Tensor]] = [[] for _ in maps]
    for image in images:
        assert isinstance(image, Prepared)
        pixels.append(image.pixels)
        extents.append(image.extents)
        for m in maps:
            cells[m].append(image.cells[m] + torch.tensor([first, 0], device="cpu"))
        first += len(image.pixels)
    batch["pixel_values"] = torch.cat(pixels)
    batch["pixel_extents"] = torch.cat(extents)
    batch["media_cells"] = tuple(torch.cat(parts) for parts in cells)
    return batch


def to_device(value: Any, device: torch.device) -> Any:
    """A value of a batch: a tensor, or a tuple of them."""
    return tuple(one.to(device) for one in value) if isinstance(value, tuple) else value.to(device)


def casting(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which the adapter, of fp32 weights, multiplies in 16 bits if its decoder does."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


class View:
    """The media of one call of the model (a forward, or a whole generation) as its gated blocks see them.

    Keys and values are computed once per block, however many tokens are generated. They are not copied for beams,
    samples and rows that show the same, whose tokens are so many more queries. Rows without an image are not computed,
    nor are columns before any row's first image.

    Q rows of keys and values: one if all rows show the same, else R less those without an image.

    Args:
        media: the embeddings [E, M] that the batch's rows gather.
        before: how many images the one row has before these, for `joined`.
    """

    def __init__(
        self,
        adapter: Adapter,
        media: Tensor,
        batch: dict[str, Any],
        attend: str,
        dtype: torch.dtype,
        before: int = 0,
    ) -> None:
        self.adapter, self.media, self.attend, self.dtype = adapter, media, attend, dtype
        self.gather, self.owner, self.index = batch["media_gather"], batch["media_owner"], batch["media_index"]
        shows = (self.owner >= 0).any(1)
        self.all_see = bool(shows.all())
        self.rows = slice(None) if self.all_see else shows.nonzero()[:, 0].tolist()
        self.gather, self.owner = self.gather[self.rows], self.owner[self.rows]
        if bool((self.gather == self.gather[:1]).all() & (self.owner == self.owner[:1]).all()):
            self.gather, self.owner = self.gather[:1], self.owner[:1]
        self.owner = self.owner.where(self.owner < 0, self.owner + before)
        if attend == "all":
            self.place()
        every = torch.arange(len(self.media), device=self.gather.device)
        self.whole = torch.equal(self.gather.flatten(), every)  # each embedding once, in order
        self.kv: list[tuple[Tensor, Tensor]] = []
        self.folded: dict[int, Folded] = {}
        self.here: tuple[int, int, int] | None = None
        self.sees: Tensor | None = None
        self.mask: Tensor | None = None
        self.first = 0
        self.blind = True
        self.moved: int | Tensor = 0  # tokens until now
        self.shape = (0, 0)  # rows and tokens now

    def place(self) -> None:
        """Embeddings get to know the place of their image in its row; one at several places becomes as many."""
        real = self.owner >= 0
        pairs = self.gather * IMAGES + self.owner.clamp(max=IMAGES - 1)
        pairs, where = pairs[real].unique(return_inverse=True)
        self.media = self.adapter.placed(self.media.index_select(0, pairs // IMAGES), pairs % IMAGES)
        self.gather = self.gather.new_zeros(self.gather.shape).masked_scatter(real, where)

    def move(self, past: int | Tensor | None, length: int, rows: int) -> None:
        """Makes ready for the tokens past .. past + length of `rows` rows, a multiple of ours (beams, samples).

        A token beyond the prompt sees what the prompt's last token sees.

        Args:
            past: tokens before, as the decoder's cache tells; None: it cannot, and those moved over until now count.

        ValueError for rows that are no multiple of ours.
        """
        if rows % len(self.index):
            raise ValueError(
                f"{rows} rows of text came with the media of {len(self.index)}: a batch cannot be taken apart (by "
                "nn.DataParallel, or accelerate's split_batches), since rows share images; make one of those rows"
            )
        past = self.moved if past is None else past
        self.moved, self.shape = past + length, (rows, length)
        compiled = torch.compiler.is_compiling()  # what tensors hold is not asked then: it would break the graph
        last, device = self.index.shape[1] - 1, self.index.device
        here = None if compiled else (min(int(past), last), length, rows)
        if here is not None and here == self.here:  # as for every token but the first of a generation
            return
        self.here = here
        columns = torch.arange(length, device=device) + torch.as_tensor(past, device=device)  # static caches count so
        index = self.index[self.rows][:, columns.clamp(max=last)]  # [rows that show any, T]
        sees = index >= 0
        self.first = 0 if compiled else int((~sees).all(0).cumprod(0).sum())
        self.blind = self.first == length
        if self.blind:
            return
        index, sees = index[:, self.first :], sees[:, self.first :]
        owner, latest = self.owner[:, None, :], index[:, :, None]
        mask = (owner == latest) if self.attend == "latest" else (owner >= 0) & (owner <= latest)
        mask |= ~sees[:, :, None]  # what such a token would get is dropped: this keeps NaN out
        copies, Q = rows // len(self.index), len(self.gather)
        self.sees = None if not compiled and bool(sees.all()) else sees.repeat(1, copies).reshape(Q, -1)
        self.mask = (
            None if not compiled and bool(mask.all()) else mask.repeat(1, copies, 1).reshape(Q, -1, mask.shape[-1])
        )

    def look(self, block: int, hidden: Tensor) -> Tensor:
        """Hidden states [rows, T, D] before a decoder layer -> the same after gated block number `block`.

        Of n residual streams of a token (hyper-connections), [rows, T, n, D] or [rows, T, n * D], each looks. The
        layers may lie on other devices than the adapter, which is whole: hidden states come and go.

        ValueError for a decoder that orders them otherwise.
        """
        if self.blind:
            return hidden
        if hidden.shape[:2] != self.shape:
            raise ValueError(
                f"{self.shape[0]} rows of {self.shape[1]} tokens are {list(hidden.shape)} in this decoder's layers: a "
                "gated block takes [rows, tokens, width]; choose another decoder"
            )
        folded = len(self.gather), -1, self.adapter.width  # copies and streams are so many more queries
        whole = hidden.to(self.media.device)
        if self.all_see and not self.first:
            return self.gated(block, whole.reshape(folded)).view(hidden.shape).to(hidden.device)
        whole = whole.unflatten(0, (len(self.index), -1))  # [R, copies, T, D]
        part = self.rows, slice(None), slice(self.first, None)
        some, whole = whole[part], whole.clone()
        whole[part] = self.gated(block, some.reshape(folded)).view(some.shape)
        return whole.flatten(0, 1).to(hidden.device)

    def gated(self, block: int, x: Tensor) -> Tensor:
        """The block's own work: x [Q, queries, D] -> [Q, queries, D]."""
        k, v = self.keys_values(block)
        queries = x.shape[1]  # of several streams, so many for each token
        mask, sees = self.mask, self.sees
        if mask is not None and mask.shape[1] != queries:
            mask = mask.repeat_interleave(queries // mask.shape[1], 1)
        if sees is not None and sees.shape[1] != queries:
            sees = sees.repeat_interleave(queries // sees.shape[1], 1)
        if not torch.is_grad_enabled() and (folded := self.fold(block, v.dtype)):
            return folded(x, k, v, mask, sees)
        with casting(x.device, self.dtype):
            return self.adapter.blocks[block](x, k, v, mask, sees)

    def fold(self, block: int, dtype: torch.dtype) -> Folded | None:
        """The block for calls without gradients, if it can be folded: once, since that looks at its weights."""
        if block not in self.folded:
            its = self.adapter.blocks[block]
            if torch.compiler.is_compiling() or not its.plain:
                return None
            self.folded[block] = its.folded(dtype)
        return self.folded[block]

    def keys_values(self, block: int) -> tuple[Tensor, Tensor]:
        """Keys and values [Q, K, S, d] of the block."""
        if not self.kv:
            with casting(self.media.device, self.dtype):
                made = self.adapter.keys_values(self.media)
            self.kv += [(self.of_rows(k), self.of_rows(v)) for k, v in made]  # others that show the same share the list
        return self.kv[block]

    def of_rows(self, x: Tensor) -> Tensor:
        """Keys or values [E, K, d] -> those of each row [Q, K, S, d], in order, since every token reads them."""
        x = x if self.whole else x.index_select(0, self.gather.flatten())
        return x.unflatten(0, self.gather.shape).transpose(1, 2).contiguous()

    def at(self, index: Tensor) -> "View":
        """The same media, their keys and values shared, seen by the tokens of another text: `media_index` [R, T]."""
        other = copy(self)
        other.index, other.moved, other.here, other.folded = index, 0, None, {}
        return other

    def joined(self, new: "View") -> "View":
        """The media of one row, and `new` ones of the same row after them; of the old no keys and values are computed.

        The new ones know how many images were `before` them.
        """
        other = copy(self)
        other.media = torch.cat([self.media, new.media])
        other.gather = torch.cat([self.gather, new.gather + len(self.media)], 1)
        other.owner = torch.cat([self.owner, new.owner], 1)
        other.here, other.folded, other.whole = None, {}, False
        pairs = [(pair, new.keys_values(block)) for block, pair in enumerate(self.kv)]
        other.kv = [(torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)) for (k, v), (new_k, new_v) in pairs]
        return other
