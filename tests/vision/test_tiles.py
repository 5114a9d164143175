"""The published accounting of 85 and 170 embeddings, and the pictures that are cut by it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision.tiles import TILE, TilePlan, cut_tiles, plan_tiles, view_size

SIDES = st.integers(1, 30_000)
DETAILS = st.sampled_from(["low", "high", "auto"])
FILL = (1, 2, 3)


@pytest.mark.parametrize(
    ("width", "height", "detail", "embeddings"),
    [
        (1024, 1024, "high", 765),
        (2048, 4096, "high", 1105),
        (4096, 8192, "low", 85),
        (512, 512, "high", 255),
        (1920, 1080, "high", 1105),
        (1, 1, "high", 255),
        (20000, 3, "high", 85 + 4 * 170),
        (512, 512, "auto", 85),
        (513, 512, "auto", 85 + 2 * 170),
    ],
)
def test_published_examples(width: int, height: int, detail: str, embeddings: int) -> None:
    assert plan_tiles(width, height, detail).embeddings == embeddings


def test_plans_in_full() -> None:
    boxes = ((0, 0, 512, 512), (512, 0, 768, 512), (0, 512, 512, 768), (512, 512, 768, 768))
    assert plan_tiles(1024, 1024) == TilePlan((768, 768), boxes, (2, 2))
    assert plan_tiles(4096, 8192, "low") == TilePlan((256, 512), (), (0, 0))
    assert plan_tiles(20000, 3).size == (2048, 1)
    assert [plan_tiles(*size).pictures for size in ((64, 64), (512, 512), (1024, 1024))] == [1, 1, 5]
    assert plan_tiles(1024, 1024, "low").pictures == 1


@given(SIDES, SIDES, DETAILS)
def test_tiles_cover_the_resized_image_exactly_once(width: int, height: int, detail: str) -> None:
    plan = plan_tiles(width, height, detail)
    rows, columns = plan.grid
    assert len(plan.boxes) == rows * columns <= 8 and 85 <= plan.embeddings <= 1445
    if plan.boxes:
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in plan.boxes)
        assert area == plan.size[0] * plan.size[1]
    for index, (left, top, right, bottom) in enumerate(plan.boxes):
        assert (top, left) == (index // columns * TILE, index % columns * TILE)  # disjoint, and row by row
        assert left < right <= min(left + TILE, plan.size[0]) and top < bottom <= min(top + TILE, plan.size[1])


@given(SIDES, SIDES, DETAILS)
def test_sizes_only_shrink_and_keep_the_aspect(width: int, height: int, detail: str) -> None:
    plan = plan_tiles(width, height, detail)
    scale = min(Fraction(1), Fraction(2048, max(width, height)), Fraction(768, min(width, height)))
    if not plan.boxes:
        scale = min(Fraction(1), Fraction(512, max(width, height)))
    for side, resized in zip((width, height), plan.size, strict=True):
        assert 1 <= resized <= side
        assert abs(resized - side * scale) <= Fraction(1, 2) or resized == 1
    assert max(plan.size) <= (2048 if plan.boxes else 512) and (not plan.boxes or min(plan.size) <= 768)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 9), st.integers(1, 9), DETAILS)
def test_scaling_both_sides_up_never_costs_less(width: int, height: int, less: int, more: int, detail: str) -> None:
    small = plan_tiles(width * less, height * less, detail).embeddings
    assert small <= plan_tiles(width * (less + more), height * (less + more), detail).embeddings


def test_widening_one_side_may_cost_less() -> None:
    assert (len(plan_tiles(2048, 768).boxes), len(plan_tiles(4096, 768).boxes)) == (8, 4)


@given(SIDES, SIDES, DETAILS)
def test_turning_the_image_turns_the_plan(width: int, height: int, detail: str) -> None:
    plan, turned = plan_tiles(width, height, detail), plan_tiles(height, width, detail)
    assert (plan.size, plan.grid) == (turned.size[::-1], turned.grid[::-1])


@pytest.mark.parametrize("bad", [0, -1, 1.5, 512.0, "512", None])
def test_sizes_that_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"width=.*integer of at least 1"):
        plan_tiles(bad, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"height=.*integer of at least 1"):
        plan_tiles(1, bad, "low")  # type: ignore[arg-type]


def test_numpy_integers_are_integers() -> None:
    assert plan_tiles(np.int32(2048), np.int32(4096)) == plan_tiles(2048, 4096)  # type: ignore[arg-type]


def test_unknown_detail_is_refused() -> None:
    with pytest.raises(ValueError, match="'medium' is unknown; use 'low', 'high' or 'auto'"):
        plan_tiles(8, 8, "medium")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1300), st.integers(1, 1300), DETAILS)
def test_pictures_hold_what_the_plan_says(width: int, height: int, detail: str) -> None:
    pictures = cut_tiles(Image.new("RGB", (width, height), (200, 100, 50)), detail, FILL)
    plan = pictures.plan
    assert plan == plan_tiles(width, height, detail)
    assert pictures.pixels.dtype == torch.uint8 and pictures.pixels.shape == (plan.pictures, 3, TILE, TILE)
    assert max(pictures.extents[0]) == TILE
    assert len(plan.boxes) <= 1 or pictures.extents[1:] == tuple((r - x, b - y) for x, y, r, b in plan.boxes)
    colour, fill = (torch.tensor(c, dtype=torch.uint8).view(3, 1, 1) for c in ((200, 100, 50), FILL))
    for picture, (w, h) in zip(pictures.pixels, pictures.extents, strict=True):
        assert (picture[:, :h, :w] == colour).all()
        assert (picture[:, h:] == fill).all() and (picture[:, :, w:] == fill).all()


def test_tiles_put_together_are_the_resized_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1300, 3), dtype=np.uint8)  # short side below 768: kept
    pictures = cut_tiles(Image.fromarray(noise), fill=FILL)
    assert pictures.plan.size == (1300, 700) and pictures.plan.grid == (2, 3)
    whole = np.zeros_like(noise)
    for tile, (left, top, right, bottom) in zip(pictures.pixels[1:], pictures.plan.boxes, strict=True):
        whole[top:bottom, left:right] = tile[:, : bottom - top, : right - left].permute(1, 2, 0).numpy()
    assert np.array_equal(whole, noise)


@given(SIDES, SIDES, DETAILS)
def test_an_image_is_resized_once_to_what_all_pictures_are_made_of(width: int, height: int, detail: str) -> None:
    plan, size = plan_tiles(width, height, detail), view_size(width, height, detail)
    if plan.pictures > 1:
        assert size == plan.size and max(size) > TILE  # so the overview is made from more than it needs
    else:
        assert max(size) == TILE


def photo(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(1000, 700), (2500, 900), (1537, 2049), (300, 40), (3000, 8)])
@pytest.mark.parametrize("detail", ["high", "low"])
def test_resized_as_pillow_does(size: tuple[int, int], detail: str) -> None:
    image = photo(*size)
    pictures = cut_tiles(image, detail, FILL)
    whole = image.resize(view_size(*size, detail), Image.Resampling.BICUBIC)
    views = [whole.resize(pictures.extents[0], Image.Resampling.BICUBIC)]
    views += [whole.crop(box) for box in pictures.plan.boxes if pictures.plan.pictures > 1]
    for picture, view in zip(pictures.pixels, views, strict=True):
        wanted = torch.from_numpy(np.array(view)).permute(2, 0, 1).int()
        found = picture[:, : view.height, : view.width].int()
        assert (found - wanted).abs().max() <= 2 and (found - wanted).abs().float().mean() < 0.02


def test_a_reduced_image_is_cut_as_it_would_be_in_full() -> None:
    image = photo(2400, 1600)
    whole, half = cut_tiles(image), cut_tiles(image.resize((1200, 800), Image.Resampling.BICUBIC), full=(2400, 1600))
    assert (half.plan, half.extents) == (whole.plan, whole.extents)
    assert (half.pixels.float() - whole.pixels.float()).abs().mean() < 2
    size = plan_tiles(600, 600).size
    assert cut_tiles(image.resize((100, 100)), full=(600, 600)).plan.size == size  # however small


def test_pictures_lie_in_memory_as_backbones_take_them() -> None:
    pixels = cut_tiles(Image.new("RGB", (1024, 600))).pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(2000, 1500), (1700, 2300), (5000, 900)])
def test_the_overview_made_of_the_resized_image_is_that_of_the_image(size: tuple[int, int]) -> None:
    low, high = (cut_tiles(photo(*size), detail).pixels[0].float() for detail in ("low", "high"))
    assert 10 * torch.log10(255**2 / (low - high).square().mean()) > 40  # dB


def test_the_overview_does_not_depend_on_detail_where_nothing_is_resized() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8))
    assert torch.equal(cut_tiles(noise, "low").pixels[0], cut_tiles(noise, "high").pixels[0])


def test_a_small_image_fills_its_overview_and_is_its_own_only_tile() -> None:
    image = Image.new("RGB", (64, 32), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 32, 32))
    pictures = cut_tiles(image)
    assert (pictures.plan.embeddings, pictures.plan.size, pictures.extents) == (255, (64, 32), ((512, 256),))
    assert pictures.pixels[0, :, 128, 100].tolist() == [255, 0, 0]
    assert pictures.pixels[0, :, 128, 400].tolist() == [0, 0, 255]
    assert pictures.pixels[0, :, 300, 100].tolist() == [127, 127, 127]


@given(st.integers(1, 1200), st.integers(1, 1200))
def test_one_picture_serves_twice_only_for_images_of_one_tile(width: int, height: int) -> None:
    plan = plan_tiles(width, height)
    assert (plan.pictures == 1) == (max(width, height) <= TILE)


def test_only_rgb_is_cut() -> None:
    with pytest.raises(ValueError, match="'RGBA' cannot be cut; open it with"):
        cut_tiles(Image.new("RGBA", (8, 8)))
    with pytest.raises(ValueError, match="width=0"):
        cut_tiles(Image.new("RGB", (0, 8)))
