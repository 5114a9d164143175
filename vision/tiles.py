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
    """uint8 [P, 3, 512, 512], RGB: the overview, then the tiles row by row; an only tile is the overview itself."""

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


def cut_tiles(image: Image.Image, detail: str = "high", fill: tuple[int, int, int] = (127, 127, 127)) -> Pictures:
    """Cut an RGB image into its overview and the tiles of `plan_tiles`, padded to 512x512 with the colour `fill`.

    The overview is the whole image fitted into 512x512, scaled down *or up*: the rule never enlarges and so never
    charges more, but where there is only one tile the backbone is shown this overview, and a small image shows it more
    when it fills it. Tiles are cut from the image resized once to `plan.size`.

    Raises `ValueError` for an image that is not RGB, and as `plan_tiles` does.
    """
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode!r} cannot be cut; open it with vision.images.open_image")
    plan = plan_tiles(*image.size, detail)
    views = [_resized(image, _scaled(*image.size, Fraction(TILE, max(image.size))))]
    if plan.pictures > 1:
        whole = _resized(image, plan.size)
        views += [whole.crop(box) for box in plan.boxes]
    pixels = torch.tensor(fill, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(views), 1, TILE, TILE)
    for picture, view in zip(pixels, views, strict=True):
        picture[:, : view.height, : view.width] = torch.from_numpy(np.array(view)).permute(2, 0, 1)
    return Pictures(pixels, tuple(view.size for view in views), plan)


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


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # Far reductions go by whole factors first: many times faster, and no eye can tell.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
