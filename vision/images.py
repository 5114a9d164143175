"""The only door for pixels: whatever holds an image comes out as a loaded 8-bit RGB `PIL.Image.Image`, or not at all.

Legend: H height, W width, in pixels.
"""

import hashlib
import io
import math
import os
import re
import urllib.request
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPException
from threading import RLock
from typing import Any, BinaryIO, TypeAlias
from urllib.error import HTTPError

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray[Any, np.dtype[Any]]
)

Lazy: TypeAlias = Source | Callable[[], Source]
"""An image, or a function that makes it when it is needed, called by one thread or another."""

Sizing: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From a width and a height to others."""

Opened: TypeAlias = tuple[Image.Image, tuple[int, int]]

MAX_PIXELS = 178_956_970
"""Most pixels (H*W) an image may have: half a GiB as RGB. Checked on the header, whatever Pillow's own globals say."""

URL_SECONDS = 20.0
"""Longest wait, in seconds, for a server to answer or to send its next bytes."""

URL_BYTES = 64 * 1024 * 1024
"""Most bytes read from a URL."""

MAX_SCANS = 100
"""Most scans of a progressive JPEG, which has some 10. One of a few bytes can walk over all pixels: 0.1 s at most."""

MARGIN = 1.55
"""How much larger than wanted a JPEG is decoded, at the least: what libjpeg leaves out on the way is not seen then."""

BAND = 1 << 22
"""Pixels whose colours are converted at a time: conversions take many times the memory of an image."""

_DRAWINGS = {"EPS", "WMF"}  # Pillow would start Ghostscript or the system's renderer on these
_SIGNATURE = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*|\0\0\0\x0cjP|RIFF....WEBP", re.DOTALL)
_ARITHMETIC = re.compile(rb"\xff\xc9\0[\x0b\x0e\x11\x14]\x08")  # a frame header; such a JPEG may have scans as short
_DRAWING_MARKS = (b"<svg", b"%pdf", b"%!ps")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow widens or narrows these PNG samples to 8 bits, but leaves the colour that PNG's tRNS chunk calls transparent.
_KEYS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda key: key * 85,
    "L;4": lambda key: key * 17,
    "RGB;16B": lambda key: tuple(sample >> 8 for sample in key),
}


class ImageError(ValueError):
    """An image that cannot be taken: the message names it, says why, and how to mend it."""


class Named(bytes):
    """The bytes of an image file that know where they are from; errors say so.

    Args:
        data: the bytes.
        name: as "shard.tar: cat.jpg".
    """

    name: str

    def __new__(cls, data: bytes, name: str = "<bytes>") -> "Named":  # pickle gives the name afterwards
        named = super().__new__(cls, data)
        named.name = name
        return named


def open_image(source: Source, *, urls: bool = False) -> Image.Image:
    """Open `source` as a new, fully loaded RGB image, upright and opaque.

    `source` is a path; the bytes of an image file; a binary file object (read from its start, left open); an http(s)
    URL if `urls` allows it; a PIL image (left as it is; its current frame); or an array [H, W] or [H, W, 1 | 3 | 4] of
    uint8, uint16, bool, or floats in 0..1.

    EXIF orientation is applied; alpha and transparent colours are composited on white; 16-bit samples are scaled, not
    clipped, mode "I" holding 16-bit samples and mode "F" 0..1; CMYK, YCbCr, LAB and palettes are converted; of an
    animation the first frame is taken. Metadata is dropped, so that opening the result again changes nothing.

    Raises `ImageError` for everything else: missing, unreadable, empty, cut short, not an image, a drawing (SVG, PDF,
    EPS), without pixels, of more than `MAX_PIXELS` (before any of them is decoded), or of more than `MAX_SCANS`.
    """
    image, _ = _open(source, None, urls)
    image = image.copy() if image is source or type(image) is not Image.Image else image
    image.info.clear()
    return image


def open_reduced(source: Source, enough: Sizing, *, urls: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    """Open as `open_image` does, but maybe smaller, and with the (width, height) that it has in full; only to be read.

    `enough` says, from the width and height of the upright image, those that are wanted of it. Of a JPEG that has
    several times as many pixels no more are decoded than `MARGIN` asks for (libjpeg decodes to 1/2, 1/4 and 1/8).
    A path, its bytes and what `PIL.Image.open` gives come out as one; a PIL image that was loaded is there in full.
    """
    return _open(source, enough, urls)


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of an upright image, of a file by its header alone: the rest of it may be damaged still.

    Raises `ImageError` as `open_image` does for what has no such header; URLs are not fetched.
    """
    name = _name(source)
    match source:
        case bytes() | bytearray() | memoryview():
            file: BinaryIO = io.BytesIO(source)
        case str() | os.PathLike() if not str(source).lower().startswith(("http://", "https://")):
            file = _open_file(source, name)
        case _:
            return _open(source, None, False)[1]
    with file, _identified(file, name) as image:
        _check_size(*image.size, name)
        return image.size if image.format == "TIFF" else _turned(image, image.size)  # Pillow turns those by itself


def _open(source: Source, enough: Sizing | None, urls: bool) -> Opened:
    name = _name(source)
    match source:
        case Image.Image():
            with _refusals(name), _READING if getattr(source, "tile", None) else nullcontext():
                unread = None if enough is None else _unread(source)
                if unread is None:
                    return _rgb(source, name, enough)
            return _decode(unread, name, enough)
        case np.ndarray():
            return _rgb(_from_array(source, name), name, enough)
        case bytes() | bytearray() | memoryview():
            return _decode(io.BytesIO(bytes(source)), name, enough)
        case str() if source.lower().startswith(("http://", "https://")):
            if not urls:
                raise ImageError(f"{name}: URLs are opened only if allowed; pass urls=True, or download it first")
            return _decode(io.BytesIO(_download(source, name)), name, enough)
        case str() | os.PathLike():
            with _open_file(source, name) as file:
                return _decode(file, name, enough)
        case _ if hasattr(source, "read"):
            with _READING:
                return _decode(source, name, enough)
    raise ImageError(f"{name}: not an image; pass a path, bytes, a binary file, a PIL image or a numpy array")


def pixels_key(image: Image.Image) -> str:
    """A hash of an RGB image's size and pixels."""
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


def opened(image: Lazy) -> Source:
    """The image, made if it is a function."""
    return image() if callable(image) else image


def file_bytes(source: Source) -> Source:
    """The bytes of an image file that a path names, which know its name; any other source as it is.

    ImageError if they cannot be read.
    """
    if not isinstance(source, str | os.PathLike) or str(source).lower().startswith(("http://", "https://")):
        return source
    name = _name(source)
    with _open_file(source, name) as file, _refusals(name):
        return Named(file.read(), name)


def identity(image: Lazy) -> Hashable:
    """What tells an image from others, without opening it: itself, or for arrays and PIL images their place."""
    return image if isinstance(image, Hashable) else id(image)


def _name(source: Any) -> str:
    match source:
        case str() | os.PathLike():
            name = os.fspath(source) or "<empty path>"
        case Named():
            name = source.name
        case bytes() | bytearray() | memoryview():
            name = "<bytes>"
        case np.ndarray():
            name = "<array>"
        case Image.Image():
            name = getattr(source, "filename", "") or "<PIL image>"
        case _ if hasattr(source, "read"):
            name = source.name if isinstance(getattr(source, "name", None), str) else "<file>"
        case _:
            name = f"<{type(source).__name__}>"
    name = str(name)
    return name if len(name) <= 300 else f"{name[:200]}...{name[-50:]}"


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    if os.path.isdir(path):
        raise ImageError(f"{name}: is a folder; name one image file in it")
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read; change its permissions") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: cannot be opened ({reason}); check the path") from error


def _download(url: str, name: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmlm"})
        with urllib.request.urlopen(request, timeout=URL_SECONDS) as response:
            data: bytes = response.read(URL_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, its socket still open
        raise ImageError(f"{name}: cannot be fetched ({error}); check the address, or download it first") from error
    if len(data) > URL_BYTES:
        raise ImageError(f"{name}: longer than {URL_BYTES:,} bytes; download it and pass its path")
    return data


def _decode(file: BinaryIO, name: str, enough: Sizing | None) -> Opened:
    with _identified(file, name) as image:
        return _rgb(image, name, enough)


@contextmanager
def _identified(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """A file as the image that its header says it is, of which nothing is decoded yet."""
    with _refusals(name):
        try:
            file.seek(0)
        except (AttributeError, OSError):  # a pipe or a socket
            file = io.BytesIO(file.read())
        start = file.read(1024)
        if isinstance(start, str):
            raise ImageError(f"{name}: opened as text; open it with mode 'rb'")
        if not start:
            raise ImageError(f"{name}: empty, not one byte; fetch or export it again")
        try:
            with _unwarned():
                opened = Image.open(file)
            with opened as image:
                yield image
        except UnidentifiedImageError as error:
            if any(mark in start.lower() for mark in _DRAWING_MARKS):
                raise _drawing(name) from error
            if _SIGNATURE.match(start):
                raise ImageError(f"{name}: cut short or damaged in its header; fetch or export it again") from error
            raise ImageError(
                f"{name}: not an image that Pillow can read (it begins with {start[:16]!r}); convert it to PNG or JPEG"
            ) from error


_READING = RLock()  # a file that the caller has opened may be given to several threads, and has one place to read at
_FILTERS = RLock()  # of warnings: they belong to all threads


@contextmanager
def _unwarned() -> Iterator[None]:
    """Within it Pillow does not warn of many pixels: MAX_PIXELS decides. One thread at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Make one `ImageError` of what Pillow raises: on damaged files OSError, SyntaxError, struct.error and others."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} Scale it down first") from error
    except Exception as error:
        raise ImageError(
            f"{name}: cannot be decoded ({type(error).__name__}: {error}); "
            "it may be damaged or cut short, fetch or export it again"
        ) from error


def _drawing(name: str) -> ImageError:
    return ImageError(f"{name}: not an image of pixels but a drawing or document; render it to PNG first")


def _check_size(width: int, height: int, name: str) -> None:
    if not (width and height):
        raise ImageError(f"{name}: {width}x{height}, has no pixels; pass an image of at least 1x1")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height}, more than {MAX_PIXELS:,} pixels; scale it down first")


def _rgb(image: Image.Image, name: str, enough: Sizing | None) -> Opened:
    _check_size(*image.size, name)
    if image.format in _DRAWINGS:
        raise _drawing(name)
    key, full = image.info.get("transparency"), None
    if isinstance(image, ImageFile.ImageFile):
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise ImageError(
                f"{name}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES hides that a file is cut short; set it False"
            )
        rawmode = image.tile[0].args if image.tile else None
        if key is not None and isinstance(rawmode, str) and rawmode in _KEYS:
            key = _KEYS[rawmode](key)
        if isinstance(image, JpegImageFile) and image.tile and image.fp:
            _check_scans(image, image.fp, name)
            if enough is not None:
                full = image.size
                width, height = _turned(image, enough(*_turned(image, full)))
                image.draft(None, (math.ceil(MARGIN * width), math.ceil(MARGIN * height)))
    large = image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf)
    with _unwarned() if large else nullcontext():  # some formats, as TIFF, are checked again
        image.load()
    _check_size(*image.size, name)  # an icon is as large as the file that turns out to be in it
    full = _turned(image, full or image.size)
    rgb = _flat(image, key, name)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn), full


def _unread(image: Image.Image) -> BinaryIO | None:
    """The file of a JPEG that was opened and not read yet: it can be decoded smaller, and the image stays as it is."""
    if not (isinstance(image, JpegImageFile) and image.tile and image.fp) or image.decoderconfig or image.tell():
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    return io.BytesIO(data)


def _check_scans(image: Image.Image, file: Any, name: str) -> None:
    place, scans, last = file.tell(), 0, b""
    file.seek(0)
    if image.info.get("progressive") or _ARITHMETIC.search(file.read(place)):
        file.seek(0)
        while part := file.read(1 << 20):
            scans += (last + part).count(b"\xff\xda")
            last = part[-1:]
    file.seek(place)
    if scans > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of {scans:,} scans, more than {MAX_SCANS:,}; save it anew")


def _turned(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Of an image as stored the size when it is upright, and the other way round."""
    return size[::-1] if _orientation(image) in (5, 6, 7, 8) else size


def _flat(image: Image.Image, key: Any, name: str) -> Image.Image:
    """The pixels on white, in RGB, maybe the given image; `key`: transparent colour, palette's alphas, or None."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, BAND // image.width)
    if rows >= image.height:
        return _flat_band(image.copy(), key, name)
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(_flat_band(band, key, name), (0, top))
    return flat


def _flat_band(image: Image.Image, key: Any, name: str) -> Image.Image:
    """As `_flat`, of an image that may be written into."""
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        low, high = int(samples.min()), int(samples.max())
        if low < 0 or high > 65535:
            raise ImageError(f"{name}: samples span {low}..{high}; scale them to 16 bits, 0..65535")
        grey = _eight_bits(samples)
        if key is not None:
            grey[samples == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        return _from_array(np.asarray(image), name).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if key is not None:
        image.info["transparency"] = key
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:  # only after loading: Pillow turns TIFFs itself and takes the tag away
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata of any kind says nothing about the pixels
        return None


def _from_array(array: np.ndarray[Any, np.dtype[Any]], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: shape {array.shape} is not [H, W] or [H, W, 1 | 3 | 4]; pass one image, its channels last"
        )
    _check_size(array.shape[1], array.shape[0], name)
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: has NaN or infinite values; replace them first")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise ImageError(f"{name}: floats span {low:g}..{high:g}; scale them to 0..1 first")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = _eight_bits(array)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: {array.dtype} values; convert to uint8, uint16, bool, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array))


def _eight_bits(samples: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Scale 0..65535 to 0..255: 65535 is 255 * 257, so this rounds to the nearest."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
