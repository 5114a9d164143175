"""Files that an honest program never writes: real ones of every format, mutated; and bombs, small on disk alone.

    python tests/vision/mutants.py --minutes 15

opens mutants one after the other in a process of limited memory. What crashes it, takes more than `SECONDS` of a core
or `BYTES` of memory, or raises anything but ImageError, is written into --folder and reported.
"""

import argparse
import gzip
import io
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision.images import ImageError, open_image, open_reduced

SECONDS = 20.0
BYTES = 3 * 1024**3


# --- real files ----------------------------------------------------------------------------------------------------


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth field with noise on it, the same each time."""
    noise = np.random.default_rng(0)
    field = Image.fromarray(noise.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA").resize((width, height), 3)
    pixels = np.asarray(field).astype(np.int16) + noise.integers(-12, 13, (height, width, 4))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")
    if mode == "I;16":
        return Image.fromarray(noise.integers(0, 65536, (height, width), dtype=np.uint16))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def saved(image: Image.Image, format: str, **kw: object) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, format, **kw)  # a writer leaves its settings on the image
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int, colour: int, data: bytes, *others: bytes, interlaced: bool = False
) -> bytes:
    """A PNG written by hand: `data` are its rows, each with its filter; `others` stand before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(others) + body + chunk(b"IEND", b"")


def interlaced_png() -> bytes:
    """8x8 grey, in Adam7's seven passes."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    return png(8, 8, 8, 0, rows, interlaced=True)


def files() -> dict[str, bytes]:
    """A small file of each kind that this Pillow can write, and a few that it can only read."""
    rgb, rgba, grey, palette = (photo(48, 40, mode) for mode in ("RGB", "RGBA", "L", "P"))
    ink, deep, bits, lab = (photo(24, 20, mode) for mode in ("CMYK", "I;16", "1", "LAB"))
    floats = Image.fromarray(np.asarray(grey, dtype=np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    told: dict[str, object] = {"exif": exif, "icc_profile": bytes(600), "dpi": (72, 72)}

    def moving() -> dict[str, Any]:
        return {"save_all": True, "append_images": [photo(48, 40).rotate(angle) for angle in (90, 180)]}

    kinds: dict[str, Callable[[], bytes]] = {
        "jpeg": lambda: saved(rgb, "JPEG", **told),
        "jpeg-444": lambda: saved(rgb, "JPEG", subsampling=0, quality=95),
        "jpeg-progressive": lambda: saved(rgb, "JPEG", progressive=True),
        "jpeg-restarts": lambda: saved(rgb, "JPEG", restart_marker_rows=1),
        "jpeg-grey": lambda: saved(grey, "JPEG", comment=b"a comment"),
        "jpeg-cmyk": lambda: saved(ink, "JPEG"),
        "mpo": lambda: saved(rgb, "MPO", **moving()),
        "png": lambda: saved(rgb, "PNG", **told),
        "png-rgba": lambda: saved(rgba, "PNG"),
        "png-palette": lambda: saved(palette, "PNG", transparency=3),
        "png-palette-alphas": lambda: saved(palette, "PNG", transparency=bytes(range(200))),
        "png-1": lambda: saved(bits, "PNG"),
        "png-16": lambda: saved(deep, "PNG"),
        "png-16-rgb": lambda: png(3, 2, 16, 2, bytes(38), chunk(b"tRNS", bytes(6))),
        "png-interlaced": interlaced_png,
        "apng": lambda: saved(rgb, "PNG", **moving()),
        "tiff": lambda: saved(rgb, "TIFF", **told),
        "tiff-lzw": lambda: saved(rgba, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": lambda: saved(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-packbits": lambda: saved(palette, "TIFF", compression="packbits"),
        "tiff-jpeg": lambda: saved(rgb, "TIFF", compression="jpeg"),
        "tiff-g4": lambda: saved(bits, "TIFF", compression="group4"),
        "tiff-g3": lambda: saved(bits, "TIFF", compression="group3"),
        "tiff-zstd": lambda: saved(rgb, "TIFF", compression="zstd"),
        "tiff-lzma": lambda: saved(rgb, "TIFF", compression="lzma"),
        "tiff-float": lambda: saved(floats, "TIFF"),
        "tiff-lab": lambda: saved(lab, "TIFF"),
        "tiff-cmyk": lambda: saved(ink, "TIFF", compression="tiff_lzw"),
        "tiff-tiled": lambda: tiled_tiff(48, 40, 16, 16),
        "tiff-pages": lambda: saved(rgb, "TIFF", **moving()),
        "tiff-big": lambda: saved(rgb, "TIFF", big_tiff=True),
        "webp": lambda: saved(rgb, "WEBP", **told),
        "webp-lossless": lambda: saved(rgba, "WEBP", lossless=True),
        "webp-moving": lambda: saved(rgb, "WEBP", **moving()),
        "avif": lambda: saved(rgba, "AVIF", speed=10),
        "gif": lambda: saved(palette, "GIF", transparency=1, comment=b"a comment"),
        "gif-moving": lambda: saved(rgb, "GIF", **moving()),
        "bmp": lambda: saved(rgb, "BMP"),
        "bmp-palette": lambda: saved(palette, "BMP"),
        "bmp-alpha": lambda: saved(rgba, "BMP"),
        "dib": lambda: saved(grey, "DIB"),
        "ico": lambda: saved(rgba, "ICO", sizes=[(16, 16), (32, 32)]),
        "ico-bmp": lambda: saved(rgba, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "icns": lambda: icns(saved(photo(128, 128, "L"), "PNG")),
        "jp2": lambda: saved(rgba, "JPEG2000"),
        "j2k-tiles": lambda: saved(rgb, "JPEG2000", no_jp2=True, tile_size=(16, 16), irreversible=True),
        "ppm": lambda: saved(rgb, "PPM"),
        "pgm-16": lambda: b"P5 4 3 65535\n" + bytes(range(24)),
        "pgm-plain": lambda: b"P2\n# a comment\n4 3 255\n" + b" ".join(b"%d" % (20 * i) for i in range(12)),
        "pbm-plain": lambda: b"P1 4 3\n010110100011",
        "pfm": lambda: saved(floats, "PPM"),
        "tga": lambda: saved(rgba, "TGA"),
        "tga-rle": lambda: saved(palette, "TGA", compression="tga_rle"),
        "sgi": lambda: saved(rgb, "SGI"),
        "pcx": lambda: saved(palette, "PCX"),
        "dds": lambda: saved(rgba, "DDS"),
        "dds-bc3": lambda: saved(rgba, "DDS", pixel_format="DXT5"),
        "blp": lambda: saved(palette, "BLP"),
        "qoi": lambda: saved(rgba, "QOI"),
        "im": lambda: saved(rgb, "IM"),
        "msp": lambda: saved(bits, "MSP"),
        "spider": lambda: saved(floats, "SPIDER"),
        "xbm": lambda: saved(bits, "XBM"),
        "xpm": lambda: b'/* XPM */\nstatic char *x[] = {\n"4 2 2 1",\n"a c #ff0000",\n"b c None",\n"abab",\n"baba"};\n',
        "sun": lambda: struct.pack(">8I", 0x59A66A95, 4, 2, 24, 24, 1, 0, 0) + bytes(24),
        "sun-rle": lambda: struct.pack(">8I", 0x59A66A95, 8, 2, 8, 16, 2, 0, 0) + bytes((128, 15, 7)),
        "psd": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 6, 8, 3) + bytes(12) + bytes(2) + bytes(range(72)),
        "fits": lambda: fits(6, 4),
        "fli": lambda: fli(8, 4),
        "eps": lambda: saved(rgb, "EPS"),
        "pdf": lambda: saved(rgb, "PDF"),
    }
    made = {}
    for name, make in kinds.items():
        with suppress(OSError, KeyError):  # a Pillow may be built without one library or another
            made[name] = make()
    return made


def tiled_tiff(width: int, height: int, tile_width: int, tile_height: int, data: bytes = b"") -> bytes:
    """Grey, deflated tiles; `data` are the pixels of each of them, zeros if not given."""
    across, down = -(-width // tile_width), -(-height // tile_height)
    tile = zlib.compress(data or bytes(min(tile_width * tile_height, 1 << 20)))
    count, start = across * down, 8
    lists = start + len(tile) + len(tile) % 2
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, tile_width), (323, 4, 1, tile_height)]
    tags += [(324, 4, count, start if count == 1 else lists)]
    tags += [(325, 4, count, len(tile) if count == 1 else lists + 4 * count)]
    body = tile.ljust(lists - start, b"\0") + struct.pack(f"<{count}I", *[start] * count)
    body += struct.pack(f"<{count}I", *[len(tile)] * count)
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", start + len(body)) + body + ifd


def fits(width: int, height: int) -> bytes:
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {width}", f"NAXIS2  = {height}", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(width * height).ljust(2880, b"\0")


def fli(width: int, height: int) -> bytes:
    pixels = struct.pack("<IH", 6 + width * height, 16) + bytes(width * height)
    frame = struct.pack("<IHH8x", 16 + len(pixels), 0xF1FA, 1) + pixels
    head = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, width, height, 8, 3, 100)
    return head.ljust(128, b"\0") + frame


# --- mutants -------------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 2, 3, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def mutant(kinds: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """One of the files, with one to six faults in it: the same for the same seed."""
    draw = random.Random(seed)
    name = draw.choice(sorted(kinds))
    data = bytearray(kinds[name])
    for _ in range(draw.choice([1, 1, 2, 3, 6])):
        head = draw.random() < 0.6  # where sizes, tables and offsets stand
        place = draw.randrange(max(1, min(len(data), 200) if head else len(data)))
        match draw.randrange(8):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1 if data:
                data[place] ^= 1 << draw.randrange(8)
            case 2 | 3:  # a number of the header becomes extreme
                wide = draw.choice([1, 2, 4, 4, 8])
                value = draw.choice(EXTREMES) & (1 << 8 * wide) - 1
                data[place : place + wide] = value.to_bytes(wide, draw.choice(["big", "little"]))
            case 4:
                data[place:place] = draw.randbytes(draw.choice([1, 2, 4, 64, 1000]))
            case 5:
                del data[place : place + draw.choice([1, 2, 4, 16, 200])]
            case 6:
                del data[draw.randrange(len(data) + 1) :]
            case 7:  # a part of it, or of another file, once more
                other = draw.choice([bytes(data), kinds[draw.choice(sorted(kinds))]])
                start = draw.randrange(max(1, len(other)))
                data[place:place] = other[start : start + draw.choice([4, 32, 500])] * draw.choice([1, 1, 1, 40])
    return name, bytes(data)


# --- bombs ---------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, Callable[[], bytes]]:
    """Files of at most a few MB that ask for much more: of memory, or of time."""
    zeros = 200_000_000
    wide = Image.new("L", (13_000, 13_000))
    row = bytes(1 + 13_000)
    return {
        "png-ztxt": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(zeros)))),
        "png-itxt": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(zeros)))),
        "png-iccp": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(zeros)))),
        "png-texts": lambda: png(
            1, 1, 8, 0, bytes(2), *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 300
        ),
        "png-chunks": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"abCd", b"") * 300_000),
        "png-exif": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 8_000_000)),
        "png-exif-ifds": lambda: png(1, 1, 8, 0, bytes(2), chunk(b"eXIf", exif_loop())),
        "png-frames": lambda: png(
            1, 1, 8, 0, bytes(2), chunk(b"acTL", struct.pack(">II", 0xFFFFFFF, 0)), *[chunk(b"fcTL", bytes(26))] * 9
        ),
        "png-larger-within": lambda: png(1, 1, 8, 0, bytes(zeros)),
        "png-alpha": lambda: png(13_000, 13_000, 8, 4, bytes(1 + 26_000) * 13_000),
        "png-palette": lambda: png(
            13_000, 13_000, 8, 3, row * 13_000, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(256))
        ),
        "png-16": lambda: png(13_000, 13_000, 16, 0, bytes(1 + 26_000) * 13_000, chunk(b"tRNS", bytes(2))),
        "png-bits": lambda: png(13_000, 13_000, 1, 0, bytes(1 + 1625) * 13_000),
        "jpeg-scans": lambda: jpeg_scans(20_000),
        "jpeg-segments": lambda: jpeg_segments(b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527), 300),
        "jpeg-icc": lambda: jpeg_segments(b"\xff\xe2\xff\xffICC_PROFILE\0" + bytes(65_521), 300),
        "jpeg-tables": lambda: jpeg_segments(b"\xff\xdb\0\x43\0" + bytes(64), 100_000),
        "jpeg-wide": lambda: saved(wide, "JPEG"),
        "webp-canvas": lambda: webp_canvas(16_384, 16_384),
        "webp-wide": lambda: saved(wide, "WEBP", lossless=True, method=0),
        "gif-wide": lambda: saved(wide, "GIF"),
        "gif-comments": lambda: gif_extensions(b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"),
        "gif-many-comments": lambda: gif_extensions(b"!\xfe\x01a\0" * 500_000),
        "tiff-tile": lambda: tiled_tiff(1, 1, 30_000, 30_000),
        "tiff-tiles": lambda: tiled_tiff(13_000, 13_000, 16, 16),
        "tiff-wide": lambda: saved(wide, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-cmyk": lambda: saved(Image.new("CMYK", (13_000, 13_000)), "TIFF", compression="tiff_adobe_deflate"),
        "tiff-float": lambda: saved(Image.new("F", (13_000, 13_000)), "TIFF", compression="tiff_adobe_deflate"),
        "tiff-tags": lambda: (
            b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + struct.pack("<HHII", 270, 2, 9, 0) * 65_535
        ),
        "tiff-count": lambda: b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 273, 4, 0xFFFFFFFF, 8) + bytes(4),
        "ico-large-within": lambda: ico(png(13_000, 13_000, 8, 4, bytes(1 + 26_000) * 13_000)),
        "ico-too-large-within": lambda: ico(png(60_000, 60_000, 1, 0, bytes(8000))),
        "icns-too-large-within": lambda: icns(png(60_000, 60_000, 1, 0, bytes(8000))),
        "ppm-token": lambda: b"P2 " + b"1" * 3_000_000,
        "ppm-comments": lambda: b"P2 " + b"#\n" * 1_000_000,
        "ppm-plain": lambda: b"P3 4000 4000 255\n" + b"0 " * 1_500_000,
        "xpm-colours": lambda: b'/* XPM */\n"4 4 9999999 9",\n' + b'"a c #000",\n' * 300_000,
        "xbm": lambda: (
            b"#define a_width 13000\n#define a_height 13000\nstatic char a_bits[] = {\n" + b"0x00," * 700_000
        ),
        "tga-rle": lambda: tga_rle(13_000, 13_000),
        "sgi-rle": lambda: b"\x01\xda\x01\x01\0\x03" + struct.pack(">HHH", 60_000, 900, 3) + bytes(900_000),
        "qoi-runs": lambda: (
            b"qoif" + struct.pack(">IIBB", 13_000, 13_000, 4, 0) + b"\xfd" * (13_000 * 13_000 // 62 + 1)
        ),
        "jp2": lambda: saved(Image.new("L", (9_000, 9_000)), "JPEG2000"),
        "jp2-boxes": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 400_000,
        "jp2-tiles": lambda: saved(Image.new("L", (2_000, 2_000)), "JPEG2000", tile_size=(16, 16), no_jp2=True),
        "avif-wide": lambda: saved(Image.new("L", (9_000, 9_000)), "AVIF", speed=10),
        "fits-gzip": lambda: gzip.compress(bytes(zeros)),
        "fits-cards": lambda: b"SIMPLE  = T".ljust(80) + b"COMMENT ".ljust(80) * 60_000,
        "psd-layers": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 6, 8, 3) + bytes(8) + b"\x7f" * 2_000_000,
        "iptc": lambda: b"\x1c\x02\x05\0\0" * 500_000,
        "im-header": lambda: b"Image type: RGB image\r\n" + b"Comment: a\r\n" * 300_000,
    }


def exif_loop() -> bytes:
    """An IFD whose every entry is as long as all of it."""
    entries = b"".join(struct.pack(">HHII", tag, 2, 700_000, 8) for tag in range(60_000))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + entries + bytes(4)


def jpeg_scans(count: int) -> bytes:
    """A progressive JPEG that refines itself over and over: each scan is a few bytes, and walks over every block."""
    data = saved(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    return data[:-2] + data[tables:-2] * min(count, 4_000_000 // (len(data) - tables)) + b"\xff\xd9"


def jpeg_segments(segment: bytes, count: int) -> bytes:
    data = saved(photo(16, 16), "JPEG")
    return data[:2] + segment * count + data[2:]


def webp_canvas(width: int, height: int) -> bytes:
    """An animation without a frame, on a large canvas."""
    head = (
        b"VP8X" + struct.pack("<IB3x", 10, 2) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + head + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame = saved(photo(16, 16), "WEBP")[12:]
    inner = bytes(6) + (15).to_bytes(3, "little") * 2 + (100).to_bytes(3, "little") + b"\0" + frame
    body += (b"ANMF" + struct.pack("<I", len(inner)) + inner) * 50
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_extensions(extensions: bytes) -> bytes:
    data = saved(photo(8, 8, "P"), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:start] + extensions + data[start:]


def ico(inner: bytes) -> bytes:
    """An icon that says it is 16x16."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def icns(inner: bytes) -> bytes:
    """An icon that says it is 128x128."""
    return b"icns" + struct.pack(">I", 16 + len(inner)) + b"ic07" + struct.pack(">I", 8 + len(inner)) + inner


def tga_rle(width: int, height: int) -> bytes:
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 32, 8)
    return head + b"\xff\0\0\0\0" * (width * height // 128 + 1)


# --- the long run --------------------------------------------------------------------------------------------------


def outcome(data: bytes) -> str:
    """What came of a file: a name to count by. Raises what open_image must not."""
    try:
        image = open_image(data)
        reduced, full = open_reduced(data, lambda width, height: (width // 3 + 1, height // 3 + 1))
    except ImageError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise cause from None
        return f"refused ({type(cause).__name__})"
    assert image.mode == reduced.mode == "RGB" and image.size == full
    return "opened"


def child(first: int, last: int) -> None:
    """Opens mutant after mutant, saying which, and what came of it; of a number below 0, the bombs."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.simplefilter("ignore")
    kinds, made = files(), list(bombs().items())
    for seed in range(first, last):
        name, data = (made[seed][0], made[seed][1]()) if seed < 0 else mutant(kinds, seed)
        spent = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent + SECONDS), resource.RLIM_INFINITY))
        print(seed, flush=True)
        try:
            said = outcome(data)
        except BaseException as error:
            said = f"FAILED {type(error).__name__}: {error}".replace("\n", " ")
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"{time.process_time() - spent:.2f} {name.partition('-')[0]}: {said}", flush=True)


def watched(first: int, last: int, end: float) -> Iterator[tuple[int, float, str]]:
    """(seed, seconds, what came of it) of mutants, until the clock is at `end`; after a crash another child goes on."""
    while first < last and time.monotonic() < end:
        run = [sys.executable, __file__, "--child", "--first", str(first), "--last", str(last)]
        with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
            lines = process.stdout
            assert lines is not None
            while time.monotonic() < end and (line := lines.readline()):
                first = int(line) + 1
                if not select.select([lines], [], [], 10 * SECONDS)[0]:
                    yield first - 1, 10 * SECONDS, "FAILED hangs"
                    break
                took, _, said = lines.readline().decode().strip().partition(" ")
                if not said:
                    yield first - 1, 0, f"FAILED crashed, {process.wait()}; {-signal.SIGXCPU}: took {SECONDS} s"
                    break
                yield first - 1, float(took), said
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--first", type=int, default=-len(bombs()), help="seed; below 0: bombs")
    parser.add_argument("--last", type=int, default=1 << 62, help="seed")
    parser.add_argument("--folder", type=Path, default=Path("mutants"), help="for what failed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.first, args.last)
    counts, slowest, failed = Counter[str](), list[tuple[float, int, str]](), 0
    for seed, took, said in watched(args.first, args.last, time.monotonic() + 60 * args.minutes):
        counts[said] += 1
        slowest = sorted([*slowest, (took, seed, said)])[-5:]
        if "FAILED" in said:
            name, data = list(bombs().items())[seed] if seed < 0 else mutant(files(), seed)
            args.folder.mkdir(exist_ok=True)
            (args.folder / f"{seed}-{name}").write_bytes(data() if callable(data) else data)
            print(f"{seed} {name}: {said}", flush=True)
            failed += 1
    for said, count in sorted(counts.items()):
        print(f"{count:8} {said}")
    print(f"{sum(counts.values())} files, {failed} failed; the slowest, in seconds: {slowest}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
