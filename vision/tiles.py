"""Images into 512x512 pictures, by the published accounting of 85 and 170 embeddings.

The rule is the one of OpenAI's vision guide ("Calculating costs", GPT-4o): an overview is 85 embeddings, every 512x512
tile 170. Legend: P pictures (the overview, then the tiles), all sizes (width, height) in pixels.
"""

import math
import operator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

TILE = 512
OVERVIEW_EMBEDDINGS = 85
TILE_EMBEDDINGS = 170

LONG_SIDE = 2048
SHORT_SIDE = 768


@dataclass(frozen=True)
class TilePlan:
    """What becomes of an image of some size: pure arithmetic, no pixels."""

    size: tuple[int, int]
    """(width, height) of the resized image; never larger than the image."""

    boxes: tuple[tuple[int, int, int, int], ...]
    """(left, top, right, bottom) of each tile in the resized image, row by row; none at low detail."""

    grid: tuple[int, int]
    """(rows, columns) of tiles; (0, 0) at low detail."""

    @property
    def embeddings(self) -> int:
        """How many embeddings the image is worth: 85 + 170 for every tile, so 85 to 1445."""
        return OVERVIEW_EMBEDDINGS + TILE_EMBEDDINGS * len(self.boxes)

    @property
    def pictures(self) -> int:
        """P, how many 512x512 pictures the backbone sees: where there is one tile, one serves as overview and tile."""
        return 1 if len(self.boxes) <= 1 else 1 + len(self.boxes)


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the backbone is shown of one image."""

    pixels: torch.Tensor
    """uint8 [P, 3, 512, 512], RGB, channels last in memory, as backbones take them: the overview, then the tiles row by
    row; an only tile is the overview itself."""

    extents: tuple[tuple[int, int], ...]
    """(width, height) of the content at each picture's top left; the rest is fill, and never attended to."""

    plan: TilePlan


def plan_tiles(width: int, height: int, detail: str = "high") -> TilePlan:
    """Plan the tiles of an image of `width` x `height` pixels.

    * "low": the overview alone, fitted into 512x512. 85 embeddings.
    * "high": fitted into 2048x2048, then the short side brought to at most 768, then cut into
      ceil(w / 512) * ceil(h / 512) tiles, at most 8. 85 + 170 per tile: 512x512 -> 255, 1024x1024 -> 765,
      2048x4096 -> 1105.
    * "auto": "low" where both sides are at most 512, otherwise "high".

    Images are only ever scaled down, so a small one is never charged for pixels that it does not have; published
    implementations disagree here, some enlarge to 768 first. Scaling an image up by the same factor on both sides
    never lowers its embeddings. Widening one side alone may: 2048x768 has 8 tiles, 4096x768 is shrunk to 4.

    Raises `ValueError` for a side that is no positive integer and for any other `detail`.
    """
    sides = _side("width", width), _side("height", height)
    if detail == "auto":
        detail = "low" if max(sides) <= TILE else "high"
    if detail == "low":
        return TilePlan(_scaled(*sides, min(Fraction(1), Fraction(TILE, max(sides)))), (), (0, 0))
    if detail != "high":
        raise ValueError(f"detail={detail!r} is unknown; use 'low', 'high' or 'auto'")
    # Both steps at once: the second divides by the first one's short side, so the product is the smaller of the two,
    # exact until its only rounding.
    w, h = _scaled(*sides, min(Fraction(1), Fraction(LONG_SIDE, max(sides)), Fraction(SHORT_SIDE, min(sides))))
    boxes = tuple(
        (left, top, min(left + TILE, w), min(top + TILE, h)) for top in range(0, h, TILE) for left in range(0, w, TILE)
    )
    return TilePlan((w, h), boxes, (-(-h // TILE), -(-w // TILE)))


def view_size(width: int, height: int, detail: str = "high") -> tuple[int, int]:
    """What an image of `width` x `height` pixels is resized to, once: tiles are cut from it, the overview made of it.

    Where the overview is the only picture, its own size.
    """
    plan = plan_tiles(width, height, detail)
    return plan.size if plan.pictures > 1 else _overview(width, height)


def cut_tiles(
    image: Image.Image,
    detail: str = "high",
    fill: tuple[int, int, int] = (127, 127, 127),
    full: tuple[int, int] | None = None,
) -> Pictures:
    """Cut an RGB image into its overview and the tiles of `plan_tiles`, padded to 512x512 with the colour `fill`.

    The overview is the whole image fitted into 512x512, scaled down *or up*: the rule never enlarges and so never
    charges more, but where there is only one tile the backbone is shown this overview, and a small image shows it more
    when it fills it. Tiles are cut from the image resized once to `view_size`, and the overview is made from that.

    `full` is the (width, height) that is planned for, where `image` is a smaller form of it, as `open_reduced` gives.

    Raises `ValueError` for an image that is not RGB, and as `plan_tiles` does.
    """
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode!r} cannot be cut; open it with vision.images.open_image")
    full = full or image.size
    plan = plan_tiles(*full, detail)
    whole = _resized(torch.from_dlpack(np.asarray(image)), view_size(*full, detail), full)
    overview = _resized(whole, _overview(*full))
    views = [overview]
    views += [whole[top:bottom, left:right] for left, top, right, bottom in plan.boxes if plan.pictures > 1]
    row = torch.tensor(fill, dtype=torch.uint8, device="cpu").repeat(TILE)
    pixels = row.expand(len(views), TILE, -1).contiguous().view(len(views), TILE, TILE, 3)
    for picture, view in zip(pixels, views, strict=True):
        picture[: view.shape[0], : view.shape[1]] = view
    extents = tuple((view.shape[1], view.shape[0]) for view in views)
    return Pictures(pixels.permute(0, 3, 1, 2), extents, plan)


def _side(name: str, value: int) -> int:
    try:
        side = operator.index(value)
    except TypeError:
        side = 0
    if side < 1:
        raise ValueError(f"{name}={value!r} is not a size in pixels; pass an integer of at least 1")
    return side


def _scaled(width: int, height: int, scale: Fraction) -> tuple[int, int]:
    """Both sides times `scale`, rounded half up, never below one pixel."""
    w, h = (max(1, math.floor(side * scale + Fraction(1, 2))) for side in (width, height))
    return w, h


def _overview(width: int, height: int) -> tuple[int, int]:
    return _scaled(width, height, Fraction(TILE, max(width, height)))


def _resized(pixels: torch.Tensor, size: tuple[int, int], full: tuple[int, int] | None = None) -> torch.Tensor:
    """uint8 [H, W, 3] -> [height, width, 3]: bicubic, antialiased, within 2 of what Pillow gives, 4 times as fast.

    `full` is the (width, height) of the image that the pixels are a smaller form of.
    """
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    columns, rows = map(_filled, full or pixels.shape[1::-1], pixels.shape[1::-1])
    scales = height / rows * (1 + 1e-9), width / columns * (1 + 1e-9)  # H and W times these are rounded down
    planes = pixels[None].permute(0, 3, 1, 2)  # channels last: what torch has a fast path for
    return interpolate(planes, scale_factor=scales, mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def _filled(full: int, side: int) -> float:
    """How many of `side` pixels are filled by what had `full`: half the last one, where 101 were decoded to 51."""
    part = full / max(1, round(full / side))
    return part if math.ceil(part) == side else side
