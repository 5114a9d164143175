"""An image to embeddings: opened, tiled, through the backbones, pooled.

P pictures, N cells of one feature map, C its channels.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vision.ahead import ahead
from vision.backbone import STEP, Backbone
from vision.images import ImageError, Lazy, Source, open_reduced, opened
from vision.pyramid import CELL, PICTURE, REAL, SLOT, Pyramid, layout
from vision.tiles import TILE, cut_tiles, plan_tiles, view_size

CPU_BATCH = 1  # pictures a pass on a CPU: four do not fit its caches, and took 1.5 times as long each
BATCH = 64  # pictures a pass elsewhere

Result = TypeVar("Result")


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
    extents: int64 [P, 2]: width and height of what is image in each picture; the rest is padding.
    cells: per pooled map int64 [N, 2]: picture and cell, 85 + 170 a tile, or a resampler's, less those of padding.
    places: as in `Features`.
    """

    pixels: Tensor
    extents: Tensor
    cells: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    @cached_property
    def key(self) -> str:
        """A hash of all that the backbone is shown of an image, and of what becomes an embedding, and where."""
        digest = hashlib.sha256()
        for tensor in (self.pixels.permute(0, 2, 3, 1), self.extents, *self.cells, *self.places):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Begun:
    """An image that waits for others to be encoded with."""

    source: Source
    ready: Prepared


def prepare(image: Source, pyramid: Pyramid, detail: str) -> Prepared:
    """Opens and tiles one image. ImageError if it cannot be opened."""
    view, full = open_reduced(image, partial(view_size, detail=detail))
    pictures = cut_tiles(view, detail, full=full)
    rows = [table[table[:, REAL] == 1] for table in layout(pyramid, pictures.plan, pictures.extents)]
    cells = tuple(table[:, [PICTURE, CELL]] for table in rows)
    extents = torch.tensor(pictures.extents, device="cpu")
    return Prepared(pictures.pixels, extents, cells, tuple(table[:, SLOT:REAL] for table in rows))


def grown(maps: Tensor, side: int) -> Tensor:
    """[P, C, h, w] -> [P, C, side, side], 0 to the right and below."""
    return pad(maps, (0, side - maps.shape[3], 0, side - maps.shape[2]))


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
        plan_tiles(TILE, TILE, detail)  # refuses one that is unknown
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

    @property
    def alone(self) -> bool:
        """Do threads encode image by image, rather than one thread their pictures in batches?"""
        return self.device.type == "cpu"

    def forward(self, pixels: Tensor, extents: Tensor, cells: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Pictures of all sizes -> per pooled map [N, C]: the cells that were asked for.

        Args:
            pixels: uint8 [P, 3, 512, 512].
            extents: int64 [P, 2]: width and height of what is image in each.
            cells: per pooled map int64 [N, 2]: picture and cell.
        """
        sizes = [self.shown(*extent) for extent in extents.tolist()]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        batch = CPU_BATCH if pixels.device.type == "cpu" else BATCH
        pooled = []
        for (width, height), its in groupby(order, sizes.__getitem__):
            for numbers in torch.tensor(list(its), device=pixels.device).split(batch):
                maps = self.maps(pixels[numbers], width, height)
                pooled.append(self.pyramid.pool(maps, extents[numbers]))
        back = torch.tensor(order, device=pixels.device).argsort()
        return tuple(
            torch.cat(parts)[back[chosen[:, 0]], chosen[:, 1]]
            for parts, chosen in zip(zip(*pooled, strict=True), cells, strict=True)
        )

    def shown(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what is shown of a picture of which so much is image: all of it, or all but padding."""
        if not all(backbone.any_size for backbone in self.backbones):
            return TILE, TILE
        return -(-width // STEP) * STEP, -(-height // STEP) * STEP

    def maps(self, pictures: Tensor, width: int = TILE, height: int = TILE) -> list[dict[int, Tensor]]:
        """uint8 [P, 3, 512, 512] -> per backbone the maps that are pooled, by depth: no others are kept.

        Of each `width` x `height` are shown, as `shown` has them; beyond, maps are 0.
        """
        found = []
        for backbone, depths in zip(self.backbones, self.depths, strict=True):
            maps = backbone(pictures[:, :, :height, :width], depths)
            found.append({depth: grown(one, backbone.sides[depth]) for depth, one in zip(depths, maps, strict=True)})
        return found

    def encode(self, image: Source) -> Features:
        """One image -> its features. ImageError if it cannot be opened."""
        return self.encode_ready([prepare(image, self.pyramid, self.detail)])[0]

    @torch.no_grad()
    def encode_ready(self, ready: Sequence[Prepared]) -> list[Features]:
        """Prepared images -> the features of each; their pictures share the passes of the backbone."""
        firsts = accumulate((len(one.pixels) for one in ready[:-1]), initial=0)
        offsets = [torch.tensor([first, 0], device="cpu") for first in firsts]
        by_map = list(zip(*(one.cells for one in ready), strict=True))
        cells = [torch.cat([its + to for its, to in zip(mine, offsets, strict=True)]) for mine in by_map]
        pixels = ready[0].pixels if len(ready) == 1 else torch.cat([one.pixels for one in ready])
        extents = torch.cat([one.extents for one in ready])
        values = self(pixels.to(self.device), extents.to(self.device), [its.to(self.device) for its in cells])
        parts = [all_.split([len(its) for its in mine]) for all_, mine in zip(values, by_map, strict=True)]
        return [Features(its, one.places) for its, one in zip(zip(*parts, strict=True), ready, strict=True)]

    def encode_all(self, images: Iterable[Lazy]) -> Iterator[Features | ImageError]:
        """Images -> the features of each, in order, as they are done; for one that cannot be opened its error.

        Some images ahead, threads open and tile them while the backbone works. On a CPU each of torch's threads takes
        an image of its own and goes all the way with it; elsewhere `BATCH` pictures make a pass, of whichever images.
        No more is held than a few images a thread and the pictures of one pass.
        """
        return self.through(images, known=lambda source, ready: None, done=lambda source, ready, features: features)

    def through(
        self,
        images: Iterable[Lazy],
        known: Callable[[Source, Prepared | None], Result | None],
        done: Callable[[Source, Prepared, Features], Result],
    ) -> Iterator[Result | ImageError]:
        """As `encode_all`, with what is `known` of an image, or if that is None what is `done` of its features.

        Both are called by one thread or another; `known` of the image alone, then of it and what it was prepared to.
        """
        alone = self.alone

        def begin(image: Lazy) -> Result | ImageError | Begun:
            try:
                source = opened(image)
                if (result := known(source, None)) is not None:
                    return result
                ready = prepare(source, self.pyramid, self.detail)
            except ImageError as error:
                return error
            if (result := known(source, ready)) is not None:
                return result
            return done(source, ready, self.encode_ready([ready])[0]) if alone else Begun(source, ready)

        def end(group: list[Result | ImageError | Begun]) -> Iterator[Result | ImageError]:
            waiting = [one.ready for one in group if isinstance(one, Begun)]
            features = iter(self.encode_ready(waiting) if waiting else ())
            for one in group:
                yield done(one.source, one.ready, next(features)) if isinstance(one, Begun) else one

        group, pictures = list[Result | ImageError | Begun](), 0
        for one in ahead(begin, images, alone=alone):
            group.append(one)
            pictures += len(one.ready.pixels) if isinstance(one, Begun) else 0
            if not 0 < pictures < BATCH or alone:
                yield from end(group)
                group, pictures = [], 0
        yield from end(group)
