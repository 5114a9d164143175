"""The grid pyramid: feature maps pooled onto square grids, coarse ones from deep maps, fine ones from shallow maps.

85 and 170 embeddings are what GPT-4o charges for an overview and a tile; the square grids that add up to them, and the
mixture of a deep semantic with a shallow local map, follow Looney 2024, "A Picture is Worth 170 Tokens".

P pictures, C channels of a map; cell: one square of a grid; slot: an embedding's place among the 85 of an overview
followed by the 170 of a tile.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vision.tiles import OVERVIEW_EMBEDDINGS, TILE, TILE_EMBEDDINGS, TilePlan

SLOTS = OVERVIEW_EMBEDDINGS + TILE_EMBEDDINGS


@dataclass(frozen=True)
class Level:
    """One square grid: `grid` x `grid` cells, pooled from feature map `map` (-1: the deepest, -2: the one before)."""

    grid: int
    map: int

    def __post_init__(self) -> None:
        if type(self.grid) is not int or type(self.map) is not int or self.grid < 1 or self.map > -1:
            raise ValueError(f"pyramid: {self}: a grid has 1 cell on a side or more, a map is -1 or below")


@dataclass(frozen=True)
class Pyramid:
    """Which grids a picture is pooled onto as an overview (85 cells in all) and as a tile (170)."""

    overview: tuple[Level, ...] = (Level(1, -1), Level(2, -1), Level(4, -1), Level(8, -2))
    tile: tuple[Level, ...] = (Level(1, -1), Level(5, -1), Level(12, -2))

    def __post_init__(self) -> None:
        for name, levels, count in (
            ("overview", self.overview, OVERVIEW_EMBEDDINGS),
            ("tile", self.tile, TILE_EMBEDDINGS),
        ):
            cells = sum(level.grid**2 for level in levels)
            if cells != count:
                grids = [level.grid for level in levels]
                raise ValueError(f"pyramid.{name}: grids {grids} have {cells} cells; they must have {count}")

    @property
    def maps(self) -> tuple[int, ...]:
        """The feature maps that are pooled, the deepest first."""
        return tuple(sorted({level.map for level in self.overview + self.tile}, reverse=True))

    def pool(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Feature maps of P pictures [P, C, h, w] -> per map of `self.maps` its cells [P, cells, C], overview first."""
        return tuple(
            torch.cat(
                [
                    adaptive_avg_pool2d(maps[source], level.grid).flatten(2).transpose(1, 2)
                    for level in self.overview + self.tile
                    if level.map == source
                ],
                dim=1,
            )
            for source in self.maps
        )


PICTURE, CELL, SLOT, ROW, COLUMN, REAL = range(6)


@lru_cache(maxsize=64)  # a few MiB
def layout(pyramid: Pyramid, plan: TilePlan, extents: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    """Which pooled cells are an image's embeddings: per map of `pyramid.maps` an int64 [embeddings, 6].

    Columns: its picture, its cell among those that `pool` gives, slot, tile row, tile column, and 1 where it covers any
    of the image (0: it covers padding alone and is never attended to). An image has 85 + 170 * tiles of them in all.

    Args:
        plan: of the image.
        extents: (width, height) in pixels of what is image in each of its 512x512 pictures; the rest is padding.
    """
    whole = [(0, 0, 0)]  # (picture, tile row, tile column)
    first_tile = 0 if len(plan.boxes) == 1 else 1  # the one picture of a one-tile image is overview and tile alike
    tiles = [(first_tile + number, *divmod(number, plan.grid[1])) for number in range(len(plan.boxes))]
    rows: dict[int, list[tuple[int, ...]]] = {source: [] for source in pyramid.maps}
    cells = dict.fromkeys(pyramid.maps, 0)
    slot = 0
    for levels, pictures in ((pyramid.overview, whole), (pyramid.tile, tiles)):
        for level in levels:
            for picture, row, column in pictures:
                width, height = extents[picture]
                for square in range(level.grid**2):
                    y, x = divmod(square, level.grid)
                    real = x * TILE < width * level.grid and y * TILE < height * level.grid
                    cell = cells[level.map] + square
                    rows[level.map].append((picture, cell, slot + square, row, column, int(real)))
            cells[level.map] += level.grid**2
            slot += level.grid**2
    return tuple(torch.tensor(rows[source], dtype=torch.int64).view(-1, 6) for source in pyramid.maps)
