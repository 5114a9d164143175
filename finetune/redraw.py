"""easy-VQA's pictures, drawn again as others would draw them: all of them are 64x64, and people's are not."""

import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vision.images import open_image

SIDES = (64, 768)  # pixels: the geometric mean of a canvas's sides
SHARES = (0.12, 0.85)  # how much of the canvas a shape takes, in the direction in which it takes more
EDGES = (1, 100)  # how much steeper than in a 64x64 picture edges are, by pixel; at the most nothing is between
LIGHT = 200  # of 255: a canvas's channels are at least this
WHITE = 0.25  # how many canvases are white
SHADE = 20  # of 255: how far a shape's channels are from easy-VQA's
# How dark a primary may be: green is 255 to easy-VQA, 128 to Pillow.
DARKEST: dict[tuple[int, ...], int] = {(255, 0, 0): 205, (0, 255, 0): 128, (0, 0, 255): 128}
JPEG = 0.5  # how many canvases are compressed
QUALITY = (60, 95)  # as Pillow counts it


@dataclass(frozen=True)
class Redrawn:
    """A flat shape on a flat ground, drawn again: larger, stretched, in a shade of its colour, somewhere on a canvas.

    Calling it draws it; picture, seed and `source` alone say how.
    """

    path: str
    seed: int = 0

    def __call__(self) -> Image.Image:
        drawn = random.Random(f"{self.seed} {source(self.path)}")
        shape, color = cut_out(open_image(self.path))
        side, aspect = _spread(drawn, *SIDES), _spread(drawn, 0.5, 2)
        wide, high = round(side * aspect**0.5), round(side / aspect**0.5)
        stretch = _spread(drawn, 0.7, 1.4)
        width, height = shape.width * stretch**0.5, shape.height / stretch**0.5
        scale = drawn.uniform(*SHARES) * min(wide / width, high / height)
        size = max(2, round(width * scale)), max(2, round(height * scale))
        light = 255 if drawn.random() < WHITE else LIGHT
        ground = tuple(drawn.randint(light, 255) for _ in "RGB")
        darker = drawn.randint(DARKEST.get(color, 255), 255) / 255
        color = tuple(round(channel * darker) for channel in color)
        shade = tuple(min(255, max(0, channel + drawn.randint(-SHADE, SHADE))) for channel in color)
        canvas = Image.new("RGB", (wide, high), ground)
        place = drawn.randint(0, wide - size[0]), drawn.randint(0, high - size[1])
        steeper = max(1.0, scale) * _spread(drawn, *EDGES)
        canvas.paste(shade, place, sharp(shape.resize(size, Image.Resampling.BICUBIC), steeper))
        return compressed(canvas, drawn.randint(*QUALITY)) if drawn.random() < JPEG else canvas


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    """What a JPEG of the picture shows."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return open_image(data.getvalue())


def source(path: str) -> str:
    """What tells a picture of easy-VQA from all others, wherever that is installed: "train/images/7.png"."""
    return "/".join(Path(path).parts[-3:])


def cut_out(picture: Image.Image) -> tuple[Image.Image, tuple[int, ...]]:
    """A flat shape on a flat ground -> what of each pixel is the shape's (mode "L", without margin), and its colour.

    The corner is of the ground, what is farthest from that is of the shape, and what lies between is an edge.
    """
    pixels = np.asarray(picture).astype(float)
    far = np.linalg.norm(pixels - pixels[0, 0], axis=2)
    row, column = np.unravel_index(far.argmax(), far.shape)
    part = Image.fromarray((255 * far / far.max()).round().astype(np.uint8))
    return part.crop(part.point(lambda value: 255 * (value > 25)).getbbox()), tuple(map(int, pixels[row, column]))


def sharp(mask: Image.Image, factor: float) -> Image.Image:
    """The mask with edges steeper by the factor."""
    return mask.point([min(255, max(0, round((value - 128) * factor + 128))) for value in range(256)])


def _spread(drawn: random.Random, low: float, high: float) -> float:
    """A number between the two, its logarithm uniform."""
    return float(low * (high / low) ** drawn.random())
