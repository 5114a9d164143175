"""The grid pyramid: feature maps pooled onto square grids, coarse ones from deep maps, fine ones from shallow maps.

85 and 170 embeddings are what GPT-4o charges for an overview and a tile; the square grids that add up to them, and the
mixture of a deep semantic (CLIP-like) with a shallow local (YOLO-like) map, follow Looney 2024, "A Picture is Worth 170
Tokens".

P pictures, C channels of a map; cell: one square of a grid; slot: an embedding's place among the 85 of an overview
followed by the 170 of a tile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

    def __post_init__(self) -> None:
        for name, levels, count in (
            ("overview", self.overview, OVERVIEW_EMBEDDINGS),
            ("tile", self.tile, TILE_EMBEDDINGS),
        ):
            cells = sum(level.grid**2 for level in levels)
            if cells != count:
                grids = [level.grid for level in levels]
                raise ValueError(f"tokens: {name}: grids {grids} have {cells} cells; they must have {count}")

    @property
    def sources(self) -> tuple[tuple[int, int], ...]:
        """The feature maps that are pooled, each as (backbone, map): by backbone, the deepest first."""
        return tuple(sorted({level.source for level in self.overview + self.tile}, key=lambda one: (one[0], -one[1])))

    def pool(self, maps: Sequence[Mapping[int, Tensor] | Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """Per backbone its maps of P pictures [P, C, h, w] -> per source its cells [P, cells, C], overview first.

        Maps of a backbone: all of them in order, or by depth (-1: the deepest) those that are pooled.
        """
        return tuple(
            torch.cat(
                [
                    adaptive_avg_pool2d(maps[backbone][depth], level.grid).flatten(2).transpose(1, 2)
                    for level in self.overview + self.tile
                    if level.source == (backbone, depth)
                ],
                dim=1,
            )
            for backbone, depth in self.sources
        )


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
}
"""What published guesses make 85 and 170 of, by name. Levels are [cells on a side, feature map(, backbone)]."""


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
        return Pyramid(tuple(named["overview"]), tuple(named["tile"]))
    if unknown := sorted(set(tokens) - {"overview", "tile"}):
        raise ValueError(f"tokens: has {', '.join(unknown)}; takes 'overview' and 'tile', as {TOKENS['pyramid']}")
    whole = TOKENS["pyramid"] | tokens
    for level in (*whole["overview"], *whole["tile"]):
        if len(level) not in (2, 3):
            raise ValueError(f"tokens: the level {level} is not [cells on a side, feature map(, backbone)]")
    overview, tile = (tuple(Level(*level) for level in whole[name]) for name in ("overview", "tile"))
    return Pyramid(overview, tile)


PICTURE, CELL, SLOT, ROW, COLUMN, REAL = range(6)


@lru_cache(maxsize=64)  # a few MiB
def layout(pyramid: Pyramid, plan: TilePlan, extents: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    """Which pooled cells are an image's embeddings: per source of the pyramid an int64 [embeddings, 6].

    Columns: its picture, its cell among those that `pool` gives, slot, tile row, tile column, and 1 where it covers any
    of the image (0: it covers padding alone and is never attended to). An image has 85 + 170 * tiles of them in all.

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
    return tuple(torch.tensor(rows[source], dtype=torch.int64).view(-1, 6) for source in pyramid.sources)
