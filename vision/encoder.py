"""An image to embeddings: opened, tiled, through the backbones, pooled.

P pictures, N cells of one feature map, C its channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vision.backbone import Backbone
from vision.images import Source, open_image
from vision.pyramid import CELL, PICTURE, REAL, SLOT, Pyramid, layout
from vision.tiles import cut_tiles

CPU_CHUNK = 1  # pictures at a time on a CPU: four do not fit its caches, and took 1.5 times as long each


@dataclass(frozen=True, eq=False)
class Features:
    """What the frozen eyes give for one image.

    values: per pooled map [N, C], in the order of the pyramid's sources.
    places: per pooled map int64 [N, 3]: slot, tile row, tile column.

    Cells of padding alone are not among them. A cell is an embedding, unless a resampler makes those of the cells.
    """

    values: tuple[Tensor, ...]
    places: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image made ready for the backbone.

    pixels: uint8 [P, 3, 512, 512].
    cells: per pooled map int64 [N, 2]: picture and cell, 85 + 170 a tile, or a resampler's, less those of padding.
    places: as in `Features`.
    """

    pixels: Tensor
    cells: tuple[Tensor, ...]
    places: tuple[Tensor, ...]


def prepare(image: Source, pyramid: Pyramid, detail: str) -> Prepared:
    """Opens and tiles one image. ImageError if it cannot be opened."""
    pictures = cut_tiles(open_image(image), detail)
    rows = [table[table[:, REAL] == 1] for table in layout(pyramid, pictures.plan, pictures.extents)]
    cells = tuple(table[:, [PICTURE, CELL]] for table in rows)
    return Prepared(pictures.pixels, cells, tuple(table[:, SLOT:REAL] for table in rows))


class VisionEncoder(nn.Module):
    """Backbones and pyramid in one. Nothing in it is trained, unless the model's config unfreezes it.

    Args:
        backbones: from `load_backbone`: one, or several, as a CLIP for what is there and a CNN for where it is.
        pyramid: which grids their maps are pooled onto.
        detail: "high" (overview and tiles), "low" (overview alone) or "auto", as in `plan_tiles`.
    """

    def __init__(
        self, backbones: Backbone | Sequence[Backbone], pyramid: Pyramid | None = None, detail: str = "high"
    ) -> None:
        super().__init__()
        several = [backbones] if isinstance(backbones, Backbone) else list(backbones)
        self.backbones = cast("Sequence[Backbone]", nn.ModuleList(several))
        self.pyramid, self.detail = pyramid or Pyramid(), detail
        for number, depth in self.pyramid.sources:
            if number >= len(several):
                raise ValueError(f"tokens: a level is of backbone {number}, but there are {len(several)}, from 0")
            if len(several[number].channels) < -depth:
                raise ValueError(
                    f"tokens: a level is of feature map {depth}, but {several[number].name} has "
                    f"{len(several[number].channels)} maps"
                )
        self.depths = [[depth for which, depth in self.pyramid.sources if which == n] for n in range(len(several))]
        if idle := [backbone.name for backbone, depths in zip(several, self.depths, strict=True) if not depths]:
            raise ValueError(
                f"tokens: no level is of {', '.join(idle)}: leave it out of vision=, or give it a level, "
                "[cells on a side, feature map, backbone]"
            )

    @property
    def channels(self) -> list[int]:
        """Channels of each pooled map, in the order of the pyramid's sources."""
        return [self.backbones[number].channels[depth] for number, depth in self.pyramid.sources]

    @property
    def device(self) -> torch.device:
        return self.backbones[0].scale.device

    def forward(self, pixels: Tensor, cells: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """uint8 [P, 3, 512, 512] and, per pooled map, cells [N, 2] (picture, cell) -> per pooled map [N, C]."""
        chunks = pixels.split(CPU_CHUNK if pixels.device.type == "cpu" else 64)
        pooled = [self.pyramid.pool(self.maps(chunk)) for chunk in chunks]
        return tuple(
            torch.cat(parts)[chosen[:, 0], chosen[:, 1]]
            for parts, chosen in zip(zip(*pooled, strict=True), cells, strict=True)
        )

    def maps(self, pictures: Tensor) -> list[dict[int, Tensor]]:
        """uint8 [P, 3, 512, 512] -> per backbone the maps that are pooled, by depth: no others are kept."""
        return [
            dict(zip(depths, backbone(pictures, depths), strict=True))
            for backbone, depths in zip(self.backbones, self.depths, strict=True)
        ]

    def encode(self, image: Source) -> Features:
        """One image -> its features. ImageError if it cannot be opened."""
        ready = prepare(image, self.pyramid, self.detail)
        cells = [cells.to(self.device) for cells in ready.cells]
        return Features(self(ready.pixels.to(self.device), cells), ready.places)
