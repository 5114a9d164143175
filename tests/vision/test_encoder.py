"""An image to embeddings: as many as the rule says less those of padding, each from its own place, always the same."""

import io
import threading
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision.ahead import cores
from vision.backbone import load_backbone
from vision.encoder import Features, VisionEncoder, prepare
from vision.images import ImageError
from vision.pyramid import Level, Pyramid, layout


@pytest.fixture(scope="module")
def encoder(tiny_vision):
    return VisionEncoder(tiny_vision)


@pytest.fixture
def shown(encoder):
    """How many pictures each pass of the backbone was shown, their height and width."""
    passes = []
    handle = encoder.backbones[0].register_forward_pre_hook(
        lambda _, args: passes.append((len(args[0]), *args[0].shape[2:]))
    )
    yield passes
    handle.remove()


def count(features):
    assert [len(value) for value in features.values] == [len(place) for place in features.places]
    return sum(map(len, features.values))


def real_cells(grid, width, height):
    """Cells of a grid over a picture that touch its upper left width x height pixels."""
    return -(-width * grid // 512) * -(-height * grid // 512)


@pytest.mark.parametrize(("size", "detail", "embeddings"), [((512, 512), "low", 85), ((512, 512), "high", 255)])
def test_a_full_picture_keeps_every_embedding(size, detail, embeddings, tiny_vision, picture):
    assert count(VisionEncoder(tiny_vision, detail=detail).encode(picture(size=size))) == embeddings


@pytest.mark.parametrize("size", [(512, 100), (100, 512), (1024, 512), (1100, 600), (2048, 512)])
def test_embeddings_of_padding_alone_are_dropped(size, encoder, picture):
    width, height = size
    tiles = [(min(512, width - x), min(512, height - y)) for y in range(0, height, 512) for x in range(0, width, 512)]
    whole = tuple(int(side * 512 / max(size) + 0.5) for side in size)
    tiles = [whole] if len(tiles) == 1 else tiles
    wanted = sum(real_cells(grid, *whole) for grid in (1, 2, 4, 8))
    wanted += sum(real_cells(grid, *tile) for tile in tiles for grid in (1, 5, 12))
    got = count(encoder.encode(picture(size=size)))
    assert got == wanted < 85 + 170 * len(tiles)


@settings(max_examples=25)
@given(width=st.integers(1, 1300), height=st.integers(1, 1300), detail=st.sampled_from(["high", "low", "auto"]))
def test_places_are_unique(width, height, detail):
    ready = prepare(Image.new("RGB", (width, height)), Pyramid(), detail)
    places = torch.cat(ready.places)
    assert len(places.unique(dim=0)) == len(places) <= 85 + 170 * 8
    overview = places[places[:, 0] < 85]
    assert overview[:, 1:].sum() == 0
    for cells in ready.cells:
        assert cells[:, 0].max() < len(ready.pixels)


def test_features_are_the_pooled_maps_at_their_cells(encoder, picture):
    image = picture(size=(512, 512))
    features = encoder.encode(image)
    ready = prepare(image, encoder.pyramid, "high")
    pooled = encoder.pyramid.pool([encoder.backbones[0](ready.pixels)], ready.extents)
    for value, cells, channels in zip(features.values, pooled, encoder.channels, strict=True):
        assert value.shape == (cells.shape[1], channels)
        torch.testing.assert_close(value.sort(0).values, cells[0].sort(0).values)


def test_the_same_image_gives_the_same_features(encoder, picture):
    one, other = (encoder.encode(picture(size=(700, 300))) for _ in range(2))
    for mine, yours in zip(one.values + one.places, other.values + other.places, strict=True):
        assert mine.equal(yours) and not mine.requires_grad


@pytest.mark.parametrize(("size", "pictures"), [((300, 200), 1), ((512, 512), 1), ((700, 300), 3), ((1024, 1024), 5)])
def test_one_pass_shows_each_picture_once(size, pictures, encoder, shown, picture):
    """A one-tile image is one picture, overview and tile alike."""
    encoder.encode(picture(size=size))
    assert sum(count for count, *_ in shown) == pictures


def test_padding_is_not_shown_to_a_network_that_needs_none(encoder, shown, picture):
    encoder.encode(picture(size=(1100, 500)))  # overview 512x233, two tiles 512x500, and one 76x500
    encoder.encode(picture(size=(600, 600)))  # overview, and tiles 512x512, 88x512, 512x88, 88x88
    wide, square = [(1, 256, 512), (1, 512, 256)], [(1, 256, 256), (1, 256, 512), (1, 512, 256)]
    assert sorted(shown) == sorted(wide + square + [(1, 512, 512)] * 4)


def test_parts_of_one_size_share_passes(tiny_vision, shown, picture, monkeypatch):
    monkeypatch.setattr("vision.encoder.CPU_BATCH", 3)
    VisionEncoder(tiny_vision).encode(picture(size=(768, 2048)))  # 192x512; tiles 512x512 and 256x512, four of each
    assert sorted(shown) == [(1, 512, 512), (2, 512, 256), (3, 512, 256), (3, 512, 512)]


@pytest.mark.parametrize(("kind", "any_size"), [("test_efficientnet", True), ("test_vit", False)])
@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300), (700, 300), (600, 600), (20, 500), (513, 512)])
def test_what_is_padded_does_not_matter(kind, any_size, size, picture, monkeypatch):
    """Its color changes no embedding but those at its edge, which a network sees together with it."""
    backbone = load_backbone(f"timm/{kind}", pretrained=False)
    assert backbone.any_size == any_size
    encoder = VisionEncoder(backbone)
    ready = prepare(picture(size=size), encoder.pyramid, "high")
    pixels = ready.pixels.clone()
    for one, (width, height) in zip(pixels, ready.extents.tolist(), strict=True):
        width, height = encoder.shown(width, height)
        one[:, height:], one[:, :, width:] = 255, 0
    other = encoder.encode_ready([replace(ready, pixels=pixels)])[0]
    assert_same(encoder.encode_ready([ready])[0], other)


def test_another_default_device_leaves_pixels_and_cells_on_the_cpu(encoder, picture):
    """And what was laid out under it is kept for those without."""
    layout.cache_clear()
    with torch.device("meta"):
        away = encoder.encode(picture())
    home = encoder.encode(picture())
    for one, other in zip(away.values + away.places, home.values + home.places, strict=True):
        assert one.equal(other)


def test_images_of_one_batch_do_not_mix(encoder, picture):
    images = [picture(1, (700, 300)), picture(2, (200, 200))]
    ready = [prepare(image, encoder.pyramid, "high") for image in images]
    cells = [ready[0].cells[m] for m in range(2)], [ready[1].cells[m] + torch.tensor([3, 0]) for m in range(2)]
    pixels, extents = (torch.cat([getattr(one, name) for one in ready]) for name in ("pixels", "extents"))
    together = encoder(pixels, extents, [torch.cat(pair) for pair in zip(*cells, strict=True)])
    alone = [encoder.encode(image).values for image in images]
    for got, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_a_tile_knows_its_own_part_of_the_image_alone(encoder, picture):
    """What changes in the right tile changes no embedding of the left one, and the overview's."""
    left = picture(1, (1024, 512))
    right = left.copy()
    right.paste(picture(2, (512, 512)), (512, 0))
    one, other = encoder.encode(left), encoder.encode(right)
    for mine, yours, place in zip(one.values, other.values, one.places, strict=True):
        same = (mine == yours).all(1)
        tile, column = place[:, 0] >= 85, place[:, 2]
        assert same[tile & (column == 0)].all()
        assert not same[tile & (column == 1)].any()
        assert not same[~tile].all()


def test_detail_decides_the_tiles(tiny_vision, picture):
    image = picture(size=(1024, 1024))
    high, low, auto = (
        count(VisionEncoder(tiny_vision, detail=detail).encode(image)) for detail in ("high", "low", "auto")
    )
    assert low == 85 < high == auto
    assert count(VisionEncoder(tiny_vision, detail="auto").encode(picture(size=(512, 512)))) == 85
    with pytest.raises(ValueError, match="detail='medium' is unknown"):
        VisionEncoder(tiny_vision, detail="medium")


@pytest.mark.parametrize("kind", ["test_resnet", "test_convnext", "test_byobnet"])
def test_any_backbone_will_do(kind, picture):
    backbone = load_backbone(timm.create_model(kind, features_only=True))
    encoder = VisionEncoder(backbone)
    features = encoder.encode(picture(size=(512, 512)))
    assert [value.shape[1] for value in features.values] == encoder.channels == backbone.channels[:-3:-1]
    assert count(features) == 255


def test_a_pyramid_deeper_than_the_backbone_is_refused(tiny_vision):
    pyramid = Pyramid(tile=(Level(1, -1), Level(5, -1), Level(12, -9)))
    with pytest.raises(
        ValueError, match="tokens: a level is of feature map -9, but module/test_efficientnet has 5 maps"
    ):
        VisionEncoder(tiny_vision, pyramid)


def test_what_is_no_image_is_refused(encoder, tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        encoder.encode(tmp_path / "nowhere.png")


# --- many images ---------------------------------------------------------------------------------------------------


class Batched(VisionEncoder):
    """An encoder that goes on a CPU the way that it goes elsewhere."""

    alone = False


def assert_same(one, other, **near):
    for mine, yours in zip((*one.values, *one.places), (*other.values, *other.places), strict=True):
        torch.testing.assert_close(mine, yours, **near)


SIZES = [(700, 300), (64, 64), (1024, 1024), (30, 900), (512, 512), (1, 1), (1600, 800)]


@pytest.mark.parametrize("kind", [VisionEncoder, Batched])
def test_many_images_give_in_order_what_each_gives_alone(kind, tiny_vision, picture, monkeypatch):
    monkeypatch.setattr("vision.encoder.BATCH", 6)
    encoder = kind(tiny_vision)
    images = [picture(seed, size) for seed, size in enumerate(SIZES)]
    lazy = [image if seed % 2 else lambda image=image: image for seed, image in enumerate(images)]
    found = list(encoder.encode_all(lazy))
    assert len(found) == len(images)
    for image, features in zip(images, found, strict=True):
        assert_same(features, encoder.encode(image), rtol=1e-4, atol=1e-5)
    if encoder.alone:  # what one thread computes alone is the same wherever it does
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for image, features in zip(images, found, strict=True):
            assert_same(features, encoder.encode(image), rtol=0, atol=0)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", [VisionEncoder, Batched])
def test_a_broken_image_is_an_error_in_its_own_place(kind, tiny_vision, picture, tmp_path):
    good = picture(size=(600, 200))
    found = list(kind(tiny_vision).encode_all([good, b"broken", tmp_path / "nowhere.png", good]))
    assert [type(one) for one in found] == [Features, ImageError, ImageError, Features]
    assert "b'broken'" in str(found[1]) and "nowhere.png" in str(found[2])
    assert_same(found[0], found[3])
    assert list(kind(tiny_vision).encode_all([])) == []


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("lazy", [io.BytesIO, lambda data: Image.open(io.BytesIO(data))], ids=["file", "opened"])
def test_one_image_that_is_not_read_yet_may_be_given_many_times(form, lazy, tiny_vision, picture):
    """Threads read it one after the other."""
    data = io.BytesIO()
    picture(size=(1500, 1100)).save(data, form)
    found = list(VisionEncoder(tiny_vision, detail="low").encode_all([lazy(data.getvalue())] * 8))
    for one in found:
        assert_same(one, found[0], rtol=0, atol=0)


def test_pictures_of_many_images_share_full_batches(tiny_vision, picture, monkeypatch):
    monkeypatch.setattr("vision.encoder.BATCH", 6)
    batches = []
    encoder = Batched(tiny_vision)
    encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    assert len(list(encoder.encode_all([picture(seed, (700, 300)) for seed in range(7)]))) == 7  # of 3 pictures each
    assert batches == [6, 6, 6, 3]


@pytest.mark.parametrize("kind", [VisionEncoder, Batched])
def test_no_more_images_are_begun_than_some_for_each_thread(kind, tiny_vision, picture, monkeypatch):
    monkeypatch.setattr("vision.encoder.BATCH", 6)
    begun = []

    def images():
        for number in range(1000):
            begun.append(number)
            yield picture()

    threads = torch.get_num_threads() if kind is VisionEncoder else cores()
    stream = kind(tiny_vision).encode_all(images())
    next(stream)
    assert len(begun) <= 3 * threads + 6
    stream.close()
    assert len(begun) < 1000


@pytest.mark.parametrize("fails", [True, False])
def test_threads_are_as_many_as_before(fails, encoder, picture):
    def image():
        assert torch.get_num_threads() == 1  # of a thread's own
        if fails:
            raise RuntimeError("of the one who makes it")
        return picture()

    before, running = torch.get_num_threads(), threading.active_count()
    if fails:
        with pytest.raises(RuntimeError, match="of the one"):
            list(encoder.encode_all([image] * 5))
    else:
        list(encoder.encode_all([image] * 5))
    assert torch.get_num_threads() == before and threading.active_count() == running


def test_features_have_no_gradients(tiny_vision, picture):
    encoder = VisionEncoder(tiny_vision)
    try:
        tiny_vision.requires_grad_(True)
        assert not any(value.requires_grad for one in encoder.encode_all([picture()] * 2) for value in one.values)
    finally:
        tiny_vision.requires_grad_(False)
