"""The resampler: latents, as many as a picture is worth, that read its cells; what they have read is its embeddings.

Jaegle et al. 2021, "Perceiver: General Perception with Iterative Attention", arXiv:2103.03206, and Alayrac et al. 2022,
"Flamingo: a Visual Language Model for Few-Shot Learning", arXiv:2204.14198, section 2.1. Keys and values are of the
cells alone, as in the first; Flamingo adds the latents' own, at which ours then look first, and learn later. Norms,
attention and feed-forward are those of a gated block; no gates.

A view is an overview or a tile. I images, T tiles of them all, N cells of them all, L latents of a view, C cells of a
view with its padding, M width of a media embedding, H heads, d width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmlm.block import RMSNorm, at_least_fp32, attend
from mmlm.config import AdapterConfig
from vision.pyramid import GRID
from vision.tiles import OVERVIEW_EMBEDDINGS, TILE_EMBEDDINGS

HEAD = 64  # width of a head
SHARP = 2.0  # of queries, at the start
LATENTS = (OVERVIEW_EMBEDDINGS, TILE_EMBEDDINGS)


def views_of(
    places: Sequence[tuple[Tensor, ...]], cells: tuple[int, int]
) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """How many embeddings each image has, of its overview and of its tiles; `media_reads` and `media_views` of a batch.

    Args:
        places: of each image, as in `Features`.
        cells: of an overview, and of a tile, as `Pyramid.cells`.
    """
    overview, tile = cells
    reads: list[tuple[Tensor, ...]] = []
    tiles: list[Tensor] = []
    first = len(places) * overview  # the tiles' cells come after those of all overviews
    for number, its in enumerate(places):
        whole = torch.cat(its)
        slot, later = whole[:, 0], whole[:, 0] >= overview
        mine, which = whole[later, 1:].unique(dim=0, return_inverse=True)  # every tile has a cell that is no padding
        read = number * overview + slot
        read[later] = first + which * tile + slot[later] - overview
        reads.append(read.split([len(part) for part in its]))
        tiles.append(mine)
        first += len(mine) * tile
    counts = [(OVERVIEW_EMBEDDINGS, len(mine) * TILE_EMBEDDINGS) for mine in tiles]
    return counts, {
        "media_reads": torch.cat([part for parts in zip(*reads, strict=True) for part in parts]),
        "media_views": (torch.zeros(len(places), 2, dtype=torch.int64), torch.cat(tiles)),
    }


class Resampler(nn.Module):
    """Cells of all views -> 85 embeddings of each overview, then 170 of each tile. No view sees another.

    They know which latent each is, and its tile row and column; the cells know that of themselves, and their level.

    A latent begins as what its home cell knows of its place, and asks as cells answer: it reads its home first, a few
    others less. Latents that begin at random all read the mean of the view, and are many times as slow to learn.

    Args:
        slot: what cells know of their place in a view [cells of an overview + cells of a tile, M].
    """

    def __init__(self, config: AdapterConfig, slot: Tensor) -> None:
        super().__init__()
        M, pyramid = config.media_dim, config.pyramid
        self.cells = pyramid.cells
        homes = [
            first + torch.arange(count) * levels[0].grid ** 2 // count  # evenly over the first level
            for first, count, levels in zip((0, self.cells[0]), LATENTS, (pyramid.overview, pyramid.tile), strict=True)
        ]
        self.latents = nn.Parameter(2 * slot.detach()[torch.cat(homes)])  # twice: more than the tile's place says
        self.row = nn.Parameter(torch.randn(GRID, M) * 0.5)
        self.column = nn.Parameter(torch.randn(GRID, M) * 0.5)
        self.layers = nn.ModuleList(Layer(M, round(config.ff_factor * M)) for _ in range(config.resampler_layers or 0))
        self.norm = RMSNorm(M)

    def forward(self, cells: Tensor, reads: Tensor, views: Sequence[Tensor]) -> Tensor:
        """cells [N, M], reads [N], views ([I, 2], [T, 2]) -> [85 I + 170 T, M], as `media` names them."""
        sizes = [len(places) * size for places, size in zip(views, self.cells, strict=True)]
        whole = cells.new_zeros(sum(sizes), cells.shape[1]).index_copy(0, reads, cells)
        there = torch.zeros(len(whole), dtype=torch.bool, device=reads.device).index_fill(0, reads, True)
        shown = zip(self.latents.split(LATENTS), views, whole.split(sizes), there.split(sizes), self.cells, strict=True)
        embeddings = []
        for latents, places, its, real, size in shown:
            row, column = places.unbind(1)
            where = self.row.index_select(0, row) + self.column.index_select(0, column)
            x = latents + where[:, None]  # [views, L, M]
            its, real = its.unflatten(0, (len(places), size)), real.unflatten(0, (len(places), size))
            for layer in self.layers:
                x = layer(x, its, real)
            embeddings.append(self.norm(x).flatten(0, 1))
        return torch.cat(embeddings)


class Layer(nn.Module):
    """x + attention(x, cells), then x + feed-forward(x), for latents x."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        heads = -(-width // HEAD)
        self.norm, self.cell_norm, self.ff_norm = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.q = nn.Linear(width, heads * HEAD, bias=False)
        self.k = nn.Linear(width, heads * HEAD, bias=False)
        self.v = nn.Linear(width, heads * HEAD, bias=False)
        self.o = nn.Linear(heads * HEAD, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(HEAD), RMSNorm(HEAD)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.q.weight.copy_(self.k.weight)
            self.q_norm.weight.fill_(SHARP)
            for product in (self.v, self.o):  # what is read is a mean of some cells: smaller than one of them
                product.weight.normal_(std=product.in_features**-0.5)

    def forward(self, x: Tensor, cells: Tensor, real: Tensor) -> Tensor:
        """x [views, L, M]; cells [views, C, M], of which those are there that are `real` bool [views, C] -> as x."""
        x = x + at_least_fp32(self.attention(self.norm(x), self.cell_norm(cells), real))
        y = self.ff_norm(x)
        return x + at_least_fp32(self.down(silu(self.gate(y)) * self.up(y)))

    def attention(self, x: Tensor, cells: Tensor, real: Tensor) -> Tensor:
        v = self.v(cells).unflatten(-1, (-1, HEAD)).transpose(1, 2)  # [views, H, C, d]
        k = self.k_norm(self.k(cells).unflatten(-1, (-1, HEAD))).to(v.dtype).transpose(1, 2)
        q = self.q_norm(self.q(x).unflatten(-1, (-1, HEAD)), HEAD**-0.5).to(v.dtype).transpose(1, 2)  # [views, H, L, d]
        return self.o(attend(q, k, v, real[:, None, None]).transpose(1, 2).flatten(2))
