"""Redrawn pictures: the same shape in about the same colour, at any size, the same at every call."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from finetune import redraw
from finetune.redraw import LIGHT, SHADE, SIDES, Redrawn, compressed, cut_out, sharp

COLORS = {"red": (255, 0, 0), "teal": (0, 128, 128), "gray": (128, 128, 128), "black": (0, 0, 0)}
BOX = (20, 12, 43, 31)  # of a shape in its picture: 24 by 20 pixels


@pytest.fixture(params=["circle", "rectangle", "triangle"])
def shape(request):
    return request.param


@pytest.fixture
def plain(monkeypatch):
    """Nothing is compressed, so that colours can be compared: they bleed far on a small canvas."""
    monkeypatch.setattr(redraw, "JPEG", 0)


def picture(shape="circle", color=(255, 0, 0), ground=(240, 250, 245)):
    """A 64x64 picture with soft edges, as easy-VQA's are."""
    large = Image.new("RGB", (256, 256), ground)
    left, top, right, bottom = (4 * side for side in BOX)
    draw = ImageDraw.Draw(large)
    if shape == "circle":
        draw.ellipse((left, top, right + 3, bottom + 3), color)
    elif shape == "rectangle":
        draw.rectangle((left, top, right + 3, bottom + 3), color)
    else:
        draw.polygon([((left + right) / 2, top), (left, bottom + 3), (right + 3, bottom + 3)], color)
    return large.resize((64, 64), Image.Resampling.BOX)


def saved(folder, *how):
    """The path of a picture, saved where easy-VQA has its own: what is drawn of it follows from the path's end."""
    path = folder / "train" / "images" / "7.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(*how).save(path)
    return str(path)


@pytest.fixture
def path(tmp_path, shape):
    return saved(tmp_path, shape)


def test_the_same_seed_draws_the_same(path):
    first, again, other = Redrawn(path)(), Redrawn(path)(), Redrawn(path, seed=1)()
    assert first.size == again.size and first.tobytes() == again.tobytes()
    assert other.tobytes() != first.tobytes()
    assert Redrawn(path) == Redrawn(path) and hash(Redrawn(path)) == hash(Redrawn(path))


def test_splits_are_drawn_apart_wherever_they_lie(path, tmp_path):
    drawn = {}
    for place in ("here/train", "there/train", "here/test"):
        (tmp_path / place / "images").mkdir(parents=True)
        copied = tmp_path / place / "images" / "7.png"
        copied.write_bytes(Path(path).read_bytes())
        drawn[place] = Redrawn(str(copied))()
    assert drawn["here/train"].tobytes() == drawn["there/train"].tobytes()
    assert drawn["here/train"].size != drawn["here/test"].size


@pytest.mark.parametrize("color", COLORS.values(), ids=COLORS)
def test_the_shape_keeps_its_colour_and_how_much_of_its_box_it_fills(shape, color, tmp_path, plain):
    """Which tells circles (0.79), rectangles (1) and triangles (0.5) apart, however they are stretched."""
    path = saved(tmp_path, shape, color)
    fills = {"circle": np.pi / 4, "rectangle": 1, "triangle": 0.5}
    for seed in range(20):
        pixels = np.asarray(Redrawn(path, seed)()).astype(int)
        floor = np.multiply(color, redraw.DARKEST.get(color, 255) / 255)
        near = ((pixels >= floor - SHADE) & (pixels <= np.add(color, SHADE))).all(2)
        ground = np.median(pixels[~near], 0)
        assert (ground >= LIGHT).all()
        inside = np.linalg.norm(pixels - np.median(pixels[near], 0), axis=2) < np.linalg.norm(pixels - ground, axis=2)
        rows, columns = np.nonzero(inside)
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        if min(width, height) > 12:
            assert inside.sum() / width / height == pytest.approx(fills[shape], abs=0.12)


@given(seed=st.integers(0, 10**6))
def test_the_canvas_is_of_any_size_and_the_shape_is_on_it(seed, tmp_path, plain):
    image = Redrawn(saved(tmp_path), seed)()
    assert SIDES[0] * 0.7 < min(image.size) and max(image.size) < SIDES[1] * 1.5
    assert SIDES[0] * 0.99 < (image.width * image.height) ** 0.5 < SIDES[1] * 1.01
    assert len(image.getcolors(2**20)) >= 2
    part, _ = cut_out(image.crop((0, 0, *image.size)))
    assert max(part.width / image.width, part.height / image.height) < 0.9


@pytest.mark.parametrize(
    ("color", "darkest"), [((0, 255, 0), 128), ((0, 0, 255), 128), ((255, 0, 0), 205), ((255, 255, 0), 255)]
)
def test_primaries_may_be_darker_as_pillows_green_is(color, darkest, tmp_path, plain):
    path = saved(tmp_path, "circle", color)
    shades = np.array([cut_out(Redrawn(path, seed)())[1] for seed in range(60)])
    full = shades[:, np.array(color) == 255]
    assert darkest - SHADE <= full.min() < darkest + 20 and full.max() > 240
    assert shades[:, np.array(color) == 0].max() <= SHADE


def test_half_of_the_canvases_are_compressed(path, monkeypatch):
    def noisy():
        """Whose ground and shape alone leave more colours than soft edges have."""
        return [seed for seed in range(60) if len(Redrawn(path, seed)().getcolors(2**20)) > 256]

    once = noisy()
    assert 15 <= len(once) <= 45
    monkeypatch.setattr(redraw, "JPEG", 0)
    assert not noisy()


@pytest.mark.parametrize("quality", redraw.QUALITY)
def test_compression_keeps_the_size_and_about_the_colours(quality):
    before = picture().resize((200, 200))
    after = compressed(before, quality)
    assert after.size == before.size and after.mode == "RGB" and after.tobytes() != before.tobytes()
    apart = np.abs(np.asarray(after).astype(int) - np.asarray(before))
    assert 0 < apart.mean() < 4 and apart[0, 0].max() <= 4


def test_sizes_and_grounds_vary(path, plain):
    images = [Redrawn(path, seed)() for seed in range(60)]
    sides = [(image.width * image.height) ** 0.5 for image in images]
    assert sum(side < 100 for side in sides) >= 3 and sum(side > 512 for side in sides) >= 3
    assert sum(image.width > image.height for image in images) in range(15, 46)
    grounds = [max(image.getcolors(2**20))[1] for image in images]
    assert 5 <= grounds.count((255, 255, 255)) <= 30 and len(set(grounds)) > 25


def test_a_shape_is_cut_out_without_margin(shape):
    part, color = cut_out(picture(shape, (0, 0, 255)))
    assert part.mode == "L" and part.size == (BOX[2] - BOX[0] + 1, BOX[3] - BOX[1] + 1)
    assert color == (0, 0, 255)
    assert part.getextrema()[1] == 255


def test_small_shapes_have_edges_for_the_most_part_and_keep_their_colour():
    image = Image.new("RGB", (64, 64), "white")
    image.putpixel((30, 30), (0, 128, 128))
    for place in ((29, 30), (31, 30), (30, 29), (30, 31)):
        image.putpixel(place, (128, 192, 192))
    part, color = cut_out(image)
    assert color == (0, 128, 128) and part.size == (3, 3)
    assert part.getpixel((1, 1)) == 255 and part.getpixel((0, 0)) == 0 and 120 < part.getpixel((0, 1)) < 135


@pytest.mark.parametrize("factor", [1, 2, 7.5])
def test_edges_get_steeper(factor):
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    said = list(sharp(ramp, factor).tobytes())
    assert said == sorted(said) and said[128] == 128 and (factor > 1) == (said[60] < 60)
    assert said[0] == 0 and said[255] == 255


def test_nothing_else_is_drawn_from(path):
    random.seed(3)
    state = random.getstate()
    Redrawn(path)()
    assert random.getstate() == state
