"""The OCR prepass: what is written in an image, with its place, for a decoder to read as text.

An engine finds and reads the lines; which one is the user's choice. Legend: L lines; places are shares of the upright
image's width and height, 0 to 1, from its top left.
"""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from vision.files import whole_file
from vision.images import Source, open_image, pixels_key
from vision.order import TALL, reading_rows

Engine = Callable[[Image.Image], Iterable[Any]]
"""An upright RGB image -> for each line (text, box) or (text, box, score); score is 0 to 1.

A box is 4 numbers (left, top, right, bottom) or 4 points (x, y), clockwise from where the text begins; in pixels.
"""

CALLABLE = "callable/"  # begins the name of an engine that was given as a callable
MOST = 256  # images whose text is kept in memory
PACKAGES = ("rapidocr", "onnxruntime")
PIXELS = 2_000_000  # of the scaled copy that lines are sought in: type of 16 pixels is found on a page of 3000x4000
_KEPT, _ENGINE = Lock(), Lock()

Found = list[tuple[str, list[list[float]], float]]
"""Text, 4 points in pixels, score."""


@dataclass(frozen=True)
class Line:
    """A line of text in an image."""

    text: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    score: float = 1.0
    """How sure the engine is, 0 to 1."""
    row: int = 0
    """Which row of text it stands in, from 0 in reading order; the cells of a row of a table have the same."""


class Reader:
    """Reads images, each once: what an engine found is kept in memory and, given a folder, on disk.

    Args:
        engine: as for `read_text`.

    Raises ValueError for an engine that there is not, ImportError for one whose packages are missing.
    """

    def __init__(self, engine: str | Engine) -> None:
        self.engine, self.run = engine, find_engine(engine)
        self.kept: dict[str, Found] = {}  # the oldest first

    def __call__(self, image: Source, folder: str | os.PathLike[str] | None = None) -> list[Line]:
        """As `read_text`. In `folder` what a named engine found is kept: another callable may have the same name."""
        picture = open_image(image)
        key = pixels_key(picture)
        with _KEPT:
            found = self.kept.get(key)
        if found is None:
            path = (
                Path(folder, f"{self.engine}-{version(self.engine)}", key[:2], f"{key}.json")
                if (folder is not None and isinstance(self.engine, str))
                else None
            )
            found = find_lines(picture, self.run) if path is None else self.stored(picture, path)
            with _KEPT:
                self.kept[key] = found
                while len(self.kept) > MOST:
                    del self.kept[next(iter(self.kept))]
        return arrange(found, picture.size)

    def stored(self, picture: Image.Image, path: Path) -> Found:
        """What the engine finds in a picture, from its file; written under a temporary name if it is not there yet."""
        try:
            return [(text, quad, score) for text, quad, score in json.loads(path.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError):  # damaged: read anew
            pass
        found = find_lines(picture, self.run)
        with whole_file(path) as draft:
            draft.write_text(json.dumps(found), encoding="utf-8")
        return found


def read_text(image: Source, engine: str | Engine) -> list[Line]:
    """The lines of text in an image, in reading order.

    Args:
        image: as for `open_image`; it is read at its full resolution.
        engine: "rapidocr" (Chinese, English and other Latin scripts; its models are in its package), or a callable.

    Raises ImageError for a bad image, ValueError for an engine that there is not, or for what a callable gives that is
    not as it must be, ImportError where the engine's packages are missing.
    """
    picture = open_image(image)
    return arrange(find_lines(picture, find_engine(engine)), picture.size)


def find_engine(engine: str | Engine) -> Engine:
    """The engine of a name, or the callable itself. ValueError for neither, ImportError where packages are missing."""
    if callable(engine):
        return engine
    check_name(engine)
    if engine.startswith(CALLABLE):
        raise ValueError(
            f"ocr={engine!r}: made with a callable, which could not be saved: pass ocr= that callable, a name, or ''"
        )
    if missing := [package for package in PACKAGES if not find_spec(package)]:
        raise ImportError(
            f"ocr={engine!r} needs {' and '.join(missing)}: pip install \"mmlm-adapter[ocr]\", or pass ocr=''"
        )
    return ENGINES[engine]


def check_name(engine: str) -> None:
    """ValueError for what is no name of an engine, nor that of a callable."""
    if not isinstance(engine, str) or (engine not in ENGINES and not engine.startswith(CALLABLE)):
        raise ValueError(f"ocr={engine!r}: takes {', '.join(map(repr, ENGINES))}, '' for none, or a callable")


def engine_name(engine: str | Engine) -> str:
    """What a config says of an engine; one that was given as a callable cannot be found by it."""
    return f"{CALLABLE}{_name(engine)}" if callable(engine) else engine


def find_lines(picture: Image.Image, engine: Engine) -> Found:
    """What an engine finds in an RGB picture, checked: white space is one space, and what has no text is left out."""
    given = engine(picture)
    if not isinstance(given, Iterable):
        raise ValueError(f"ocr engine {_name(engine)}: gave {given!r}, not an iterable of (text, box, score)")
    lines = [_line(item, engine) for item in given]
    return [line for line in lines if line[0]]


def arrange(found: Found, size: tuple[int, int]) -> list[Line]:
    """What was found in a picture of `size` (width, height) as lines in reading order."""
    quads = np.array([quad for _, quad, _ in found], dtype=np.float64).reshape(-1, 4, 2)
    shares = (quads / size).clip(0, 1)
    boxes = np.concatenate([shares.min(1), shares.max(1)], 1).tolist()
    return [
        Line(found[number][0], tuple(boxes[number]), found[number][2], row)
        for row, numbers in enumerate(reading_rows(quads))
        for number in numbers
    ]


def describe(lines: Sequence[Line], budget: int, count: Callable[[str], int]) -> str:
    """Lines in reading order -> a text for a decoder: a row of text a line, and where it stands. "" without lines.

    Args:
        budget: most tokens that it may have. Rows that are too many are left out from the middle, and their number is
            said there: what a page is and what it comes to is at its ends.
        count: the number of tokens of a text.
    """
    rows = [_row(list(row)) for _, row in groupby(lines, key=lambda line: line.row)]

    def shown(most: int) -> str:
        left = len(rows) - most
        cut = [f"({left} lines left out)"] if left else []
        return "\n".join([HEAD, *rows[: most - most // 2], *cut, *rows[len(rows) - most // 2 :]])

    if not rows:
        return ""
    if count(whole := shown(len(rows))) <= budget:  # it may be shorter than with the line that says what is left out
        return whole
    most = bisect_right(range(len(rows)), budget, key=lambda most: count(shown(most))) - 1
    return shown(most) if most >= 0 else ""


HEAD = "Text in the image:"


def read_with_rapidocr(picture: Image.Image) -> Found:
    """The engine "rapidocr": PP-OCR's detector and recognizer (arXiv:2009.09941), run by onnxruntime on the CPU."""
    with _ENGINE:
        result = _rapidocr()(picture)
    if getattr(result, "txts", None) is None:  # nothing was found, or nothing could be read
        return []
    return list(zip(result.txts, result.boxes.tolist(), result.scores, strict=True))


ENGINES: dict[str, Engine] = {"rapidocr": read_with_rapidocr}


@cache
def _rapidocr() -> Any:
    """The engine, loaded. It shrinks no image but to seek lines in, and its boxes begin where the text begins."""
    import torch
    from rapidocr import RapidOCR

    class Reading(RapidOCR):
        def detect_and_crop(self, img: Any, op_record: dict[str, Any]) -> Any:
            height, width = img.shape[:2]
            shrink = min(1.0, math.sqrt(PIXELS / (height * width)))
            self._load_det_model().limit_side_len = max(1, round(max(height, width) * shrink))
            return super().detect_and_crop(img, op_record)

        def build_final_output(self, ori_img: Any, det_res: Any, cls_res: Any, *rest: Any) -> Any:
            found = [] if det_res.boxes is None or cls_res.cls_res is None else det_res.boxes
            for quad, (label, score) in zip(found, cls_res.cls_res or [], strict=True):
                wide, high = (
                    int(max(np.hypot(*(quad[i] - quad[j]).T))) for i, j in (([0, 2], [1, 3]), ([0, 1], [3, 2]))
                )
                flipped = "180" in label and score > self.cfg.Cls.cls_thresh
                quad[:] = np.roll(quad, -(high >= TALL * wide) - 2 * flipped, axis=0)
            return super().build_final_output(ori_img, det_res, cls_res, *rest)

    return Reading(
        params={
            "Global.log_level": "error",
            "Global.max_side_len": 1 << 30,
            "Global.use_vertical_padding": False,
            "Det.limit_type": "max",
            "Rec.rec_batch_num": 1,  # on a CPU, lines of a batch cost what the longest costs
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )


def _row(lines: list[Line]) -> str:
    """A row's text, and where it begins in percent of width and height.

    In this order: with places first, a decoder of 135M parameters found 14 totals of 20 invoices, and so 19.
    """
    left, top = min(line.box[0] for line in lines), min(line.box[1] for line in lines)
    return " ".join(line.text for line in lines) + f" ({100 * left:.0f},{100 * top:.0f})"


def _line(item: Any, engine: Engine) -> tuple[str, list[list[float]], float]:
    """One line as an engine gave it, checked."""
    try:
        text, box, *rest = item
        points = np.asarray(box, dtype=np.float64)
        score = float(*rest) if rest else 1.0
        if points.shape == (4,):
            left, top, right, bottom = points.tolist()
            points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            if left > right or top > bottom:
                raise ValueError("a box that ends before it begins")
        if points.shape != (4, 2) or not np.isfinite(points).all() or not 0 <= score <= 1 or not isinstance(text, str):
            raise ValueError("a value of the wrong kind")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"ocr engine {_name(engine)}: gave {item!r:.200} ({error}); a line must be (text, box) or (text, box, "
            "score): a string, 4 numbers (left, top, right, bottom) or 4 points in pixels, a number from 0 to 1"
        ) from error
    return " ".join(text.split()), points.tolist(), score


def _name(engine: Engine) -> str:
    return getattr(engine, "__qualname__", type(engine).__qualname__)
