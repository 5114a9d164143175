"""An image to embeddings: opened, tiled, through the backbone, pooled.

P pictures, N embeddings from one feature map, C its channels.
"""

from dataclasses import dataclass

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

    values: per pooled map [N, C], the deepest map first.
    places: per pooled map int64 [N, 3]: slot, tile row, tile column.

    Embeddings of padding alone are not among them.
    """

    values: tuple[Tensor, ...]
    places: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image made ready for the backbone.

    pixels: uint8 [P, 3, 512, 512].
    cells: per pooled map int64 [N, 2]: which cells of which picture become embeddings (85 + 170 a tile, less padding).
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
    """Backbone and pyramid in one. Nothing in it is trained, unless the model's config unfreezes it.

    Args:
        backbone: from `load_backbone`.
        pyramid: which grids its maps are pooled onto.
        detail: "high" (overview and tiles), "low" (overview alone) or "auto", as in `plan_tiles`.
    """

    def __init__(self, backbone: Backbone, pyramid: Pyramid | None = None, detail: str = "high") -> None:
        super().__init__()
        self.backbone, self.pyramid, self.detail = backbone, pyramid or Pyramid(), detail
        deepest = min(self.pyramid.maps)
        if len(backbone.channels) < -deepest:
            raise ValueError(
                f"the pyramid pools feature map {deepest}, but {backbone.name} has {len(backbone.channels)} maps"
            )

    @property
    def channels(self) -> list[int]:
        """Channels of each pooled map, the deepest first."""
        return [self.backbone.channels[source] for source in self.pyramid.maps]

    def forward(self, pixels: Tensor, cells: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """uint8 [P, 3, 512, 512] and, per pooled map, cells [N, 2] (picture, cell) -> per pooled map [N, C]."""
        chunks = pixels.split(CPU_CHUNK if pixels.device.type == "cpu" else 64)
        pooled = [self.pyramid.pool(self.backbone(chunk)) for chunk in chunks]
        return tuple(
            torch.cat(parts)[chosen[:, 0], chosen[:, 1]]
            for parts, chosen in zip(zip(*pooled, strict=True), cells, strict=True)
        )

    def encode(self, image: Source) -> Features:
        """One image -> its features. ImageError if it cannot be opened."""
        ready = prepare(image, self.pyramid, self.detail)
        device = self.backbone.scale.device
        return Features(self(ready.pixels.to(device), [c.to(device) for c in ready.cells]), ready.places)
