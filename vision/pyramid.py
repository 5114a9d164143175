"""The grid pyramid: feature maps pooled onto square grids, coarse ones from deep maps, fine ones from shallow maps.

85 and 170 embeddings are what GPT-4o charges for an overview and a tile; the square grids that add up to them, and the
mixture of a deep semantic (CLIP-like) with a shallow local (YOLO-like) map, follow Looney 2024, "A Picture is Worth 170
Tokens".

P pictures, C channels of a map; cell: one square of a grid; slot: a cell's place among those of an overview followed by
those of a tile: 85 and 170, each of which is an embedding, unless a resampler makes those of more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vision.tiles import OVERVIEW_EMBEDDINGS, TILE, TILE_EMBEDDINGS, TilePlan

GRID = 5  # a tile's row and column are below this: 2048x768 is 4 x 2 tiles


@dataclass(frozen=True)
class Level:
    """One square grid: `grid` x `grid` cells, pooled from feature map `map` (-1: the deepest, -2: the one before)."""

    grid: int
    map: int
    backbone: int = 0
    """Whose map, of several backbones."""

    def __post_init__(self) -> None:
        whole = all(type(number) is int for number in (self.grid, self.map, self.backbone))
        if not whole or self.grid < 1 or self.map > -1 or self.backbone < 0:
            raise ValueError(
                f"tokens: {self}: a grid has 1 cell on a side or more, a map is -1 or below, backbones count from 0"
            )

    @property
    def source(self) -> tuple[int, int]:
        """Backbone and map."""
        return self.backbone, self.map


@dataclass(frozen=True)
class Pyramid:
    """Which grids a picture is pooled onto as an overview (85 cells in all) and as a tile (170)."""

    overview: tuple[Level, ...] = (Level(1, -1), Level(2, -1), Level(4, -1), Level(8, -2))
    tile: tuple[Level, ...] = (Level(1, -1), Level(5, -1), Level(12, -2))
    resampled: bool = False
    """Are the cells no embeddings yet, but what a resampler reads? It makes 85 and 170 of however many there are."""

    def __post_init__(self) -> None:
        for name, levels, cells, count in zip(
            ("overview", "tile"),
            (self.overview, self.tile),
            self.cells,
            (OVERVIEW_EMBEDDINGS, TILE_EMBEDDINGS),
            strict=True,
        ):
            if cells != count and not self.resampled:
                grids = [level.grid for level in levels]
                raise ValueError(
                    f"tokens: {name}: grids {grids} have {cells} cells; they must have {count}; for {count} made of "
                    "more take tokens='resampler'"
                )

    @property
    def cells(self) -> tuple[int, int]:
        """How many cells an overview has, and how many a tile."""
        overview, tile = (sum(level.grid**2 for level in levels) for levels in (self.overview, self.tile))
        return overview, tile

    @property
    def sources(self) -> tuple[tuple[int, int], ...]:
        """The feature maps that are pooled, each as (backbone, map): by backbone, the deepest first."""
        return tuple(sorted({level.source for level in self.overview + self.tile}, key=lambda one: (one[0], -one[1])))

    def pool(self, maps: Sequence[Mapping[int, Tensor] | Sequence[Tensor]], extents: Tensor) -> tuple[Tensor, ...]:
        """Per backbone its maps of P pictures [P, C, h, w] -> per source its cells [P, cells, C], overview first.

        A cell is the mean of what of the map it covers and shows any of the image; one of padding alone is 0.

        Args:
            maps: of a backbone all of them in order, or by depth (-1: the deepest) those that are pooled.
            extents: int64 [P, 2]: width and height in pixels of what is image in each picture of 512x512.
        """
        pooled = []
        for backbone, depth in self.sources:
            its = maps[backbone][depth]
            real = real_part(extents, its)
            its = its.where(real, 0)
            parts = []
            for level in self.overview + self.tile:
                if level.source == (backbone, depth):
                    share = adaptive_avg_pool2d(real.to(its.dtype), level.grid)
                    cells = adaptive_avg_pool2d(its, level.grid) / share.where(share > 0, 1)
                    parts.append(cells.flatten(2).transpose(1, 2))
            pooled.append(torch.cat(parts, dim=1))
        return tuple(pooled)


def real_part(extents: Tensor, maps: Tensor) -> Tensor:
    """Which squares of maps [P, C, h, w] show any of the image: bool [P, 1, h, w]; `extents` as in `Pyramid.pool`."""
    (width, height), (h, w) = extents.T[:, :, None], maps.shape[2:]
    columns = torch.arange(w, device=maps.device) * TILE < width * w
    rows = torch.arange(h, device=maps.device) * TILE < height * h
    return (rows[:, :, None] & columns[:, None, :])[:, None]


TOKENS: dict[str, dict[str, list[list[int]]]] = {
    "pyramid": {"overview": [[1, -1], [2, -1], [4, -1], [8, -2]], "tile": [[1, -1], [5, -1], [12, -2]]},
    "square": {"overview": [[2, -1], [9, -2]], "tile": [[1, -1], [13, -2]]},
    "seven": {
        "overview": [[1, -1], [1, -2], [3, -1], [5, -1], [7, -2]],
        "tile": [[1, -1], [1, -2], [2, -1], [3, -1], [5, -1], [7, -2], [9, -2]],
    },
    "triple": {
        "overview": [[grid, -1] for grid in (1, 2, 3, 4, 5)] + [[grid, -2] for grid in (1, 2, 3, 4)],
        "tile": [[grid, depth] for depth in (-1, -2, -3) for grid in (1, 2, 3, 4, 5)] + [[1, -4], [2, -4]],
    },
    "resampler": {"overview": [[16, -2], [8, -1]], "tile": [[16, -2], [16, -1]]},
}
"""What guesses make 85 and 170 of, by name. Levels are [cells on a side, feature map(, backbone)]; under a name the
first of the finest is of the second of two backbones.

| name        | overview: 85              | tile: 170               | what it is after                              |
|-------------|---------------------------|-------------------------|-----------------------------------------------|
| "pyramid"   | 1 + 4 + 16 + 64           | 1 + 25 + 144            | what there is, coarse, from a deep map; where |
|             |                           |                         | it is, fine, from a shallow one               |
| "square"    | 4 + 81                    | 1 + 169                 | the finest that one grid can be: were it so,  |
|             |                           |                         | 13 x 13 symbols could be read                 |
| "seven"     | 1 + 1 + 9 + 25 + 49       | 1 + 1 + 4 + 9 + 25 + 49 | many scales in small steps; none finer than   |
|             |                           | + 81                    | 9 x 9                                         |
| "triple"    | (1 + 4 + 9 + 16 + 25)     | 3 (1 + 4 + 9 + 16 + 25) | 5 x 5 at the finest, where GPT-4o stops being |
|             | + (1 + 4 + 9 + 16)        | + 1 + 4                 | perfect; each scale from three depths         |
| "resampler" | 85 that read 256 + 64     | 170 that read 256 + 256 | latents, learned: which cells each reads is   |
|             |                           |                         | not laid down (a Perceiver resampler)         |

The sums for a tile are guesses of Looney 2024, "A Picture is Worth 170 Tokens", and of its readers; for the overview
none is published, and these are the tile's in small. What the resampler reads (Jaegle et al. 2021,
arXiv:2103.03206; Alayrac et al. 2022, arXiv:2204.14198) is our choice. A CNN's deepest map of 512 pixels is 16 x 16,
all of which a tile shows; the one before is pooled to the same cells, three for each latent in all, finer than any grid
above. The overview, half as many latents, has the deepest map in quarters.
"""


def parse_tokens(tokens: str | dict[str, list[list[int]]], backbones: int = 1) -> Pyramid:
    """A name of `TOKENS`, or grids in the same form -> the pyramid.

    Under a name, the finest grid is of the second of two backbones, all others of the first. What grids of one's own
    leave out is the default's.

    Raises ValueError for unknown names, and for grids that do not add up to 85 and 170.
    """
    if isinstance(tokens, str):
        if tokens not in TOKENS:
            raise ValueError(
                f"tokens={tokens!r}: one of {', '.join(TOKENS)}, or grids of your own, as {TOKENS['pyramid']}"
            )
        named = {name: [Level(*level) for level in levels] for name, levels in TOKENS[tokens].items()}
        if backbones > 1:
            for levels in named.values():
                finest = max(levels, key=lambda level: level.grid)
                levels[levels.index(finest)] = replace(finest, backbone=1)
        return Pyramid(tuple(named["overview"]), tuple(named["tile"]), tokens == "resampler")
    if unknown := sorted(set(tokens) - {"overview", "tile"}):
        raise ValueError(f"tokens: has {', '.join(unknown)}; takes 'overview' and 'tile', as {TOKENS['pyramid']}")
    whole = TOKENS["pyramid"] | tokens
    for level in (*whole["overview"], *whole["tile"]):
        if len(level) not in (2, 3):
            raise ValueError(f"tokens: the level {level} is not [cells on a side, feature map(, backbone)]")
    overview, tile = (tuple(Level(*level) for level in whole[name]) for name in ("overview", "tile"))
    return Pyramid(overview, tile)


PICTURE, CELL, SLOT, ROW, COLUMN, REAL = range(6)


@lru_cache(maxsize=64)  # a few MiB; of a resampler's cells 14
def layout(pyramid: Pyramid, plan: TilePlan, extents: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    """Which pooled cells an image is seen by: per source of the pyramid an int64 [cells, 6].

    Columns: its picture, its cell among those that `pool` gives, slot, tile row, tile column, and 1 where it covers any
    of the image (0: it covers padding alone and is never attended to). An image has 85 + 170 * tiles of them in all,
    unless they are for a resampler.

    Args:
        plan: of the image.
        extents: (width, height) in pixels of what is image in each of its 512x512 pictures; the rest is padding.
    """
    whole = [(0, 0, 0)]  # (picture, tile row, tile column)
    first_tile = 0 if len(plan.boxes) == 1 else 1  # the one picture of a one-tile image is overview and tile alike
    tiles = [(first_tile + number, *divmod(number, plan.grid[1])) for number in range(len(plan.boxes))]
    rows: dict[tuple[int, int], list[tuple[int, ...]]] = {source: [] for source in pyramid.sources}
    cells = dict.fromkeys(pyramid.sources, 0)
    slot = 0
    for levels, pictures in ((pyramid.overview, whole), (pyramid.tile, tiles)):
        for level in levels:
            for picture, row, column in pictures:
                width, height = extents[picture]
                for square in range(level.grid**2):
                    y, x = divmod(square, level.grid)
                    real = x * TILE < width * level.grid and y * TILE < height * level.grid
                    cell = cells[level.source] + square
                    rows[level.source].append((picture, cell, slot + square, row, column, int(real)))
            cells[level.source] += level.grid**2
            slot += level.grid**2
    # on the CPU whatever the default device is: they are kept for callers with another
    return tuple(torch.tensor(rows[source], dtype=torch.int64, device="cpu").view(-1, 6) for source in pyramid.sources)
