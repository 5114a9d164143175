"""The only door for pixels: what it takes comes out right, what it does not take is refused by name."""

import io
import os
import pickle
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import mutants
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image, ImageDraw, ImageFile, ImageFont

from vision import images
from vision.images import ImageError, Named, image_size, open_image, open_reduced
from vision.tiles import cut_tiles, view_size

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ROOT = Path(__file__).parents[2]
FILES = mutants.files()
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **kw: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **kw)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: list[bytes], key: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow cannot write every bit depth, nor a lying header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(b"tRNS", key) if key else b"") + body + chunk(b"IEND", b"")


def row(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def refusal(source: object, **kw: bool) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **kw)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- every kind of source ------------------------------------------------------------------------------------------


def test_the_same_picture_through_every_door(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(NOISE), "PNG")
    path = tmp_path / "noise.png"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.seek(7)
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        doors = [path, str(path), data, bytearray(data), memoryview(data), file, pipe, Image.open(path), NOISE]
        for source in doors:
            image = open_image(source)  # type: ignore[arg-type]
            assert type(image) is Image.Image and image.mode == "RGB" and not image.info
            assert np.array_equal(np.asarray(image), NOISE), type(source)
    assert not file.closed


def test_files_are_closed(tmp_path: Path) -> None:
    good, bad, moving = tmp_path / "good.tif", tmp_path / "bad.png", tmp_path / "moving.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    frames[0].save(good, save_all=True, append_images=frames[1:])
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    bad.write_bytes(encoded(Image.fromarray(NOISE), "PNG")[:200])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert row(open_image(good))[0] == row(open_image(moving))[0] == RED
        refusal(bad)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


class Served(BaseHTTPRequestHandler):
    pages: ClassVar = {
        "/noise.png": encoded(Image.fromarray(NOISE), "PNG"),
        "/page.html": b"<!doctype html><p>no image",
        "/long.png": bytes(4096),
    }

    def do_GET(self) -> None:
        self.send_response(200 if self.path in self.pages else 404)
        self.end_headers()
        self.wfile.write(self.pages.get(self.path, b""))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_urls_only_if_allowed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "urls=True" in refusal(f"{server}/noise.png")
    assert "urls=True" in refusal("HTTPS://example.invalid/cat.jpg")
    assert np.array_equal(np.asarray(open_image(f"{server}/noise.png", urls=True)), NOISE)
    assert "404" in refusal(f"{server}/missing.png", urls=True)
    assert "<!doctype html>" in refusal(f"{server}/page.html", urls=True)
    for broken in ("http://127.0.0.1:port/", "http://[::1/", "http://"):
        assert "cannot be fetched" in refusal(broken, urls=True)
    monkeypatch.setattr(images, "URL_BYTES", 1000)
    assert "longer than 1,000 bytes" in refusal(f"{server}/long.png", urls=True)


# --- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_comes_out_rgb_and_leaves_the_given_image_alone(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    before = image.copy()
    result = open_image(image)
    assert (result.mode, result.size) == ("RGB", (3, 2)) and result is not image
    result.paste(RED, (0, 0, 3, 2))
    assert image == before


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa"])
def test_colour_survives_its_space(mode: str) -> None:
    colours = [WHITE, (0, 0, 0), (200, 120, 80), (60, 110, 70)]
    if mode != "LAB":  # 8-bit LAB is too coarse for the corners of the gamut
        colours += [RED, GREEN, BLUE]
    for colour in colours:
        image = Image.new("RGB", (1, 1), colour)
        image = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)
        assert np.abs(np.subtract(row(open_image(image))[0], colour)).max() <= 4, colour


def test_cmyk_jpeg() -> None:
    ink = Image.new("CMYK", (16, 16), (255, 0, 255, 0))
    assert np.abs(np.subtract(row(open_image(encoded(ink, "JPEG", quality=95)))[0], GREEN)).max() <= 4


def test_alpha_is_composited_on_white() -> None:
    assert row(open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 0)))) == [WHITE]
    assert row(open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))) == [(127, 127, 127)]
    assert row(open_image(Image.new("LA", (1, 1), (0, 0)))) == [WHITE]
    assert row(open_image(Image.new("LA", (1, 1), (0, 255)).convert("La"))) == [(0, 0, 0)]
    assert row(open_image(Image.new("PA", (1, 1), (0, 0)))) == [WHITE]
    assert row(open_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "WEBP", lossless=True))) == [WHITE]


def test_transparent_palettes() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert row(open_image(encoded(image, "PNG"))) == [RED, GREEN, BLUE]
    assert row(open_image(encoded(image, "GIF", transparency=1))) == [RED, WHITE, BLUE]
    assert row(open_image(encoded(image, "PNG", transparency=b"\x00\xff\x80"))) == [WHITE, GREEN, (127, 127, 255)]
    image.info["transparency"] = b"\x00\xff\xff"
    assert row(open_image(image)) == [WHITE, GREEN, BLUE]
    del image.info["transparency"]
    assert row(open_image(image)) == [RED, GREEN, BLUE], "the palette of the given image was written to"


@pytest.mark.parametrize(
    ("bits", "colour", "pixels", "key", "expected"),
    [
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (2, 0, b"\x60", b"\0\2", [85, 255]),
        (4, 0, b"\x3c", b"\0\3", [255, 204]),
        (8, 0, b"\x03\x0c", b"\0\3", [255, 12]),
        (16, 0, b"\x03\x00\x03\x01", b"\3\1", [3, 255]),
        (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", [WHITE, (4, 5, 6)]),
        (16, 2, b"\1\7\2\7\3\7\4\7\5\7\6\7", b"\1\7\2\7\3\7", [WHITE, (4, 5, 6)]),
    ],
)
def test_png_transparent_colour(bits: int, colour: int, pixels: bytes, key: bytes, expected: list[object]) -> None:
    wanted = [(value,) * 3 if isinstance(value, int) else value for value in expected]
    assert row(open_image(png(2, 1, bits, colour, [pixels], key))) == wanted


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 128, 129, 255, 257, 32768, 65407, 65535]], dtype=np.uint16)
    grey = [0, 0, 1, 1, 1, 128, 255, 255]
    little = Image.fromarray(ramp)
    big = Image.frombytes("I;16B", (8, 1), ramp.astype(">u2").tobytes())
    path = tmp_path / "ramp.tif"
    little.save(path)
    pgm = b"P5 8 1 65535\n" + ramp.astype(">u2").tobytes()
    wide = Image.fromarray(ramp.astype(np.int32))
    assert (little.mode, big.mode, wide.mode) == ("I;16", "I;16B", "I")
    for source in (little, big, wide, ramp, ramp.astype(">u2"), path, pgm, encoded(little, "PNG")):
        assert [pixel[0] for pixel in row(open_image(source))] == grey
    assert "70000" in refusal(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    assert "-1" in refusal(Image.fromarray(np.array([[-1]], dtype=np.int32)))


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert row(open_image(data))[0] == pytest.approx(RED, abs=4), format
        held = Image.open(io.BytesIO(data))
        held.seek(1)
        assert row(open_image(held))[0] == pytest.approx(GREEN, abs=4), f"{format}: a PIL image stays at its frame"
        assert held.tell() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(format: str, orientation: int) -> None:
    # The four corners of the upright picture, and how a camera held so would have stored them.
    upright = np.zeros((32, 64, 3), dtype=np.uint8)
    upright[:16, :32], upright[:16, 32:], upright[16:, :32] = RED, GREEN, BLUE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
    image = open_image(data)
    assert image.size == (64, 32)
    corners = np.asarray(image)[[4, 4, 28, 28], [4, 60, 4, 60]]
    assert np.abs(np.subtract(corners, [RED, GREEN, BLUE, (0, 0, 0)])).max() < 32
    assert open_image(image) == image, "turned twice"
    assert open_image(Image.open(io.BytesIO(data))) == image


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.fromarray(NOISE), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    assert np.array_equal(np.asarray(open_image(data)), NOISE)


# --- arrays --------------------------------------------------------------------------------------------------------


def test_arrays() -> None:
    grey = NOISE[:, :, 0]
    for array in (grey, grey[:, :, None], grey.astype(np.uint16) * 257, grey / 255, (grey / 255).astype(np.float32)):
        assert np.array_equal(np.asarray(open_image(array)), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(np.asarray(open_image(NOISE[::-1, ::2])), NOISE[::-1, ::2])
    assert row(open_image(np.array([[True, False]]))) == [WHITE, (0, 0, 0)]
    assert row(open_image(np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], dtype=np.uint8))) == [WHITE, RED]
    assert row(open_image(np.array([[[1, 0, 0]]], dtype=np.float16))) == [RED]
    assert row(open_image(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))) == [(0, 0, 0), WHITE]


def test_a_result_shares_no_memory() -> None:
    array = NOISE.copy()
    image = open_image(array)
    array[:] = 0
    assert np.array_equal(np.asarray(image), NOISE)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), np.inf), "infinite"),
        (np.full((2, 2), 200.0), "200..200; scale them to 0..1"),
        (np.full((2, 2), -0.5), "-0.5"),
        (np.zeros((2, 2), dtype=np.int64), "int64"),
        (np.zeros((2, 2), dtype=np.complex64), "complex64"),
        (np.zeros((2, 2), dtype="U1"), "<U1"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "channels last"),
        (np.zeros((8, 8, 2), dtype=np.uint8), "(8, 8, 2)"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint8), "one image"),
        (np.zeros((), dtype=np.uint8), "()"),
        (np.zeros((0, 5), dtype=np.uint8), "5x0"),
        (np.zeros((5, 0, 3), dtype=np.uint8), "0x5"),
        (Image.fromarray(np.full((2, 2), 200, dtype=np.float32)), "scale them to 0..1"),
    ],
)
def test_arrays_that_are_refused(array: object, says: str) -> None:
    assert says in refusal(array)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_paths_that_are_refused(tmp_path: Path) -> None:
    cat = tmp_path / "cat.jpg"
    assert "no such file" in refusal(cat) and str(cat) in refusal(str(cat))
    assert "is a folder" in refusal(tmp_path)
    assert "<empty path>" in refusal("")
    cat.write_bytes(b"")
    assert "empty" in refusal(cat) and str(cat) in refusal(cat)
    assert "Not a directory" in refusal(cat / "inner.png")
    assert "null" in refusal("a\0b.png")
    assert len(refusal("data:image/png;base64," + "A" * 9999)) < 500


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(Image.fromarray(NOISE), "PNG"))
    path.chmod(0)
    assert "may not be read" in refusal(path)


def test_things_that_are_refused(tmp_path: Path) -> None:
    assert "<NoneType>" in refusal(None) and "pass a path" in refusal(None)
    assert refusal(b"") == "<bytes>: empty, not one byte; fetch or export it again"
    assert "b'hello'" in refusal(b"hello")
    assert "mode 'rb'" in refusal(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    assert "<file>" in refusal(closed) and "closed file" in refusal(closed)
    assert "0x5" in refusal(Image.new("RGB", (0, 5)))
    path = tmp_path / "noise.png"
    Image.fromarray(NOISE).save(path)
    with Image.open(path) as shut:
        pass
    assert str(path) in refusal(shut)


def test_bytes_that_know_where_they_are_from_are_named() -> None:
    named = Named(b"", "a.tar: cat.jpg")
    assert (
        refusal(named)
        == refusal(pickle.loads(pickle.dumps(named)))
        == ("a.tar: cat.jpg: empty, not one byte; fetch or export it again")
    )
    whole = Named(encoded(Image.new("RGB", (3, 2), RED), "PNG"), "a.tar: cat.png")
    assert open_image(whole).getpixel((0, 0)) == RED and whole == bytes(whole)


@pytest.mark.parametrize(
    "drawing",
    [
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ],
)
def test_drawings_are_not_images(drawing: bytes) -> None:
    assert "render it to PNG" in refusal(drawing)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_cut_short_is_refused_wherever_it_is_cut(format: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(NOISE), format)
    path = tmp_path / f"cut.{format.lower()}"
    for length in [*range(1, len(data) - 24, max(1, len(data) // 23)), len(data) - 24]:
        path.write_bytes(data[:length])
        assert str(path) in refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_a_known_format_cut_in_its_header_is_said_to_be_cut_short(format: str) -> None:
    data = encoded(Image.fromarray(NOISE), format)
    for length in (12, 16, 20):
        assert "cut short" in refusal(data[:length])


def test_cut_short_is_refused_even_if_pillow_is_told_to_look_away(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(NOISE), "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in refusal(data[: len(data) // 2])
    assert open_image(NOISE).size == (40, 24)


@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_bomb_is_refused_on_its_header(pillow_limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    bomb = png(20000, 20000, 1, 0, [b"\0"])
    assert "pixels" in refusal(bomb) and "scale it down" in refusal(bomb).lower()
    assert pillow_limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # which Pillow checks at its header alone, and again at its pixels
def test_a_large_image_that_is_taken_is_taken_in_silence(
    kind: str, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    assert open_image(encoded(Image.fromarray(NOISE), kind)).size == (40, 24)
    assert not recwarn.list


def test_the_limit_holds_for_arrays_and_pil_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 40)
    assert open_image(NOISE).size == (40, 24)
    wider = np.zeros((24, 41, 3), dtype=np.uint8)
    assert "41x24" in refusal(wider) and "41x24" in refusal(Image.fromarray(wider))


# --- anything at all -----------------------------------------------------------------------------------------------


def third(width: int, height: int) -> tuple[int, int]:
    return width // 3 + 1, height // 3 + 1


@pytest.fixture
def quiet() -> Iterator[None]:
    """Pillow warns of what is odd in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def image_or_error(source: object) -> None:
    """An RGB image or one ImageError, and the same of what is opened reduced."""
    image = None
    with suppress(ImageError):
        image = open_image(source)  # type: ignore[arg-type]
        assert type(image) is Image.Image and image.mode == "RGB" and not image.info
    with suppress(ImageError):  # less is decoded, so less may be found damaged
        reduced, full = open_reduced(source, third)  # type: ignore[arg-type]
        assert reduced.mode == "RGB" and (image is None or full == image.size)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from([data[:20] for data in FILES.values()]), st.binary(max_size=200)).map(b"".join),
        st.binary(max_size=200).map(io.BytesIO),
        st.text(max_size=200),
        st.text(max_size=200).map(io.StringIO),
        st.text(max_size=50).map(Path),
        st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers(),
        st.lists(st.integers(0, 255)) | st.dictionaries(st.text(), st.integers()),
        st.sampled_from([object, object(), len, Image, Ellipsis, range(9), {1}, io.BytesIO, Image.Image(), open_image]),
    )
)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_given(source: object) -> None:
    image_or_error(source)


DTYPES = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(endianness="?"),
    arrays_of.unsigned_integer_dtypes(endianness="?"),
    arrays_of.floating_dtypes(endianness="?"),
    arrays_of.complex_number_dtypes(),
    arrays_of.datetime64_dtypes(),
    arrays_of.unicode_string_dtypes(max_len=3),
    arrays_of.byte_string_dtypes(max_len=3),
    arrays_of.array_dtypes(),
    st.just(np.dtype(object)),
)
SHAPES = st.one_of(
    arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([1, 3, 4])),
)


@given(
    DTYPES.flatmap(lambda dtype: arrays_of.arrays(dtype, SHAPES)) | arrays_of.arrays(np.uint8, SHAPES), st.booleans()
)
def test_arrays_of_any_shape_and_dtype(array: np.ndarray, turned: bool) -> None:
    image_or_error(array.T if turned else array)


@given(
    mode=st.sampled_from(Image.MODES),
    size=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    pixels=st.binary(min_size=1, max_size=64),
    key=st.none() | st.integers(-1, 300) | st.binary(max_size=300) | st.tuples(*[st.integers(0, 255)] * 3) | st.text(),
    exif=st.none() | st.integers(0, 9) | st.text(max_size=3),
)
def test_pil_images_of_every_mode(mode: str, size: tuple[int, int], pixels: bytes, key: object, exif: object) -> None:
    image = Image.new(mode, size)
    if 0 not in size:
        wanted = len(image.tobytes())
        image.frombytes((pixels * (wanted // len(pixels) + 1))[:wanted])
    if key is not None:
        image.info["transparency"] = key
    if exif is not None:
        with suppress(Exception):
            image.getexif()[0x0112] = exif
    before, told = image.copy(), dict(image.info)
    image_or_error(image)
    assert image.tobytes() == before.tobytes() and image.info == told and image.size == size


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("start", range(0, 1200, 150))
def test_mutated_files(start: int) -> None:
    """A few of what `python tests/vision/mutants.py` runs through by the hour, in a process of limited memory."""
    for seed in range(start, start + 150):
        image_or_error(mutants.mutant(FILES, seed)[1])


@pytest.mark.usefixtures("quiet")
def test_every_kind_of_file_is_an_image_as_long_as_it_is_whole() -> None:
    assert {"jpeg-progressive", "png-interlaced", "tiff-tiled", "webp", "gif", "jp2", "tga-rle"} <= set(FILES)
    for name, data in FILES.items():
        if name in ("eps", "pdf"):
            assert "render it to PNG" in refusal(data)
        else:
            assert open_image(data).mode == "RGB", name


QUICK = ["png-exif-ifds", "webp-canvas", "gif-comments", "tiff-count", "fits-cards", "ico-too-large-within"]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", [*QUICK, "icns-too-large-within", "ppm-token", "xpm-colours"])
def test_bombs(name: str) -> None:
    data = mutants.bombs()[name]()
    start = time.process_time()
    image_or_error(data)
    assert time.process_time() - start < mutants.SECONDS


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    assert "scans, more than 100; save it anew" in refusal(mutants.jpeg_scans(120))
    assert open_image(mutants.jpeg_scans(20)).size == (4000, 4000)


@pytest.mark.usefixtures("quiet")
def test_what_is_in_an_icon_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    within = encoded(Image.new("L", (300, 200)), "PNG")
    assert open_image(mutants.ico(within)).size == (300, 200)
    monkeypatch.setattr(images, "MAX_PIXELS", 300 * 200 - 1)
    assert "300x200, more than 59,999 pixels" in refusal(mutants.ico(within))


@pytest.mark.parametrize("mode", Image.MODES)
def test_colours_are_converted_by_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = mutants.photo(40, 24, "RGBA")
    match mode:
        case "I;16" | "I;16B" | "I;16L" | "I;16N" | "I":
            image = mutants.photo(40, 24, "I;16").convert(mode)
        case "F":
            image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.float32) / 255)
        case "RGBA" | "RGBa":
            image = image.convert(mode)
        case "LA" | "La" | "PA":
            image = image.convert("LA").convert(mode)
        case _:
            image = image.convert("RGB").convert(mode)
    whole = open_image(image)
    monkeypatch.setattr(images, "BAND", 100)
    assert open_image(image) == whole


# --- reduced -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG"])
def test_reduced_is_the_same_in_whichever_form_it_comes(kind: str, mode: str, orientation: int, tmp_path: Path) -> None:
    if kind == "PNG" and mode == "CMYK":
        pytest.skip("no PNG is in CMYK")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{kind.lower()}"
    mutants.photo(400, 300, mode).save(path, kind, exif=exif)
    enough = lambda width, height: (width // 6, height // 6)  # noqa: E731
    found, full = open_reduced(path, enough)
    assert full == ((400, 300) if orientation == 1 else (300, 400))
    assert (found.width < full[0]) == (kind != "PNG")
    data = path.read_bytes()
    with Image.open(path) as lazy, path.open("rb") as file, Image.open(file) as of_file:
        for source in (str(path), data, bytearray(data), io.BytesIO(data), lazy, of_file, Image.open(io.BytesIO(data))):
            again, size = open_reduced(source, enough)  # type: ignore[arg-type]
            assert size == full and np.array_equal(np.asarray(again), np.asarray(found)), type(source)
        if kind != "PNG":  # not decoded on the way, and still to be decoded in full
            assert lazy.tile and lazy.size == (400, 300)
        assert open_image(lazy) == open_image(path)
    loaded = Image.open(path)
    loaded.load()
    assert open_reduced(loaded, enough)[1] == full and open_reduced(loaded, enough)[0].size == full


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    orientation=st.integers(1, 8),
    share=st.tuples(st.floats(0.01, 2), st.floats(0.01, 2)),
)
def test_reduced_is_never_smaller_than_enough(
    width: int, height: int, orientation: int, share: tuple[float, float]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    asked = []

    def enough(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return max(1, int(width * share[0])), max(1, int(height * share[1]))

    image, full = open_reduced(encoded(Image.new("RGB", (width, height)), "JPEG", exif=exif), enough)
    assert set(asked) == {full} == {(width, height) if orientation < 5 else (height, width)}
    for side, had, wanted in zip(image.size, full, enough(*full), strict=True):
        assert min(had, images.MARGIN * wanted) <= side <= had


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


@pytest.mark.parametrize("size", [(3177, 2383), (3600, 2701)])
def test_text_that_was_decoded_smaller_is_as_sharp(size: tuple[int, int]) -> None:
    """What is lost is about what bicubic and Lanczos differ by, which no eye tells apart."""
    page, font = Image.new("RGB", size, "white"), ImageFont.load_default(size=size[1] // 80)
    pen, draw = ImageDraw.Draw(page), np.random.default_rng(0)
    for top in range(0, size[1], size[1] // 60):
        pen.text((20, top), "".join(map(chr, draw.integers(33, 126, 170))), fill=(0, 0, 0), font=font)
    data, wanted = encoded(page, "JPEG", quality=88), view_size(*size)
    reduced, full = open_reduced(data, view_size)
    assert full == size and reduced.width <= size[0] / 2 + 1
    whole = open_image(data)
    bicubic, lanczos = (
        np.asarray(whole.resize(wanted, how)) for how in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    )
    tiles = cut_tiles(reduced, full=full)
    ours = np.zeros_like(bicubic)
    for tile, (left, top, right, bottom) in zip(tiles.pixels[1:], tiles.plan.boxes, strict=True):
        ours[top:bottom, left:right] = tile[:, : bottom - top, : right - left].permute(1, 2, 0).numpy()
    assert psnr(ours, bicubic) > psnr(lanczos, bicubic) - 1  # dB, at the least margin; more of it, and it is above


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_told_by_the_header(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (40, 30)), format, **({} if format in ("BMP", "GIF") else {"exif": exif}))
    path = tmp_path / "image"
    path.write_bytes(data)
    wanted = open_image(data).size
    for source in (path, str(path), data, Image.open(path), np.zeros((wanted[1], wanted[0], 3), dtype=np.uint8)):
        assert image_size(source) == wanted


def test_the_size_of_what_is_cut_short_is_told_still_and_of_what_is_no_image_is_not() -> None:
    data = encoded(Image.new("RGB", (400, 300)), "PNG")
    assert image_size(data[:200]) == (400, 300)
    for broken in (b"", b"nothing", Path("nowhere.png"), "http://example.com/a.png", 3):
        with pytest.raises(ImageError) as caught:
            open_image(broken)  # type: ignore[arg-type]
        with pytest.raises(ImageError) as sized:
            image_size(broken)  # type: ignore[arg-type]
        assert str(sized.value) == str(caught.value)
