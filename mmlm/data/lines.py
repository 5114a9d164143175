"""JSON row by row: JSONL, or one long array; of the file only where each row begins and ends is held."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmlm.data.index import remembered
from mmlm.data.row import RowReader, parsed
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample

CHUNK = 1 << 24  # bytes read at a time
LARGE = 1 << 28  # bytes from which on it is remembered where lines are
BOM = "\ufeff"  # which some editors begin a file with
SPACE = re.compile(r"[ \t\n\r]*")

Spans = NDArray[np.int64]
"""[rows, 3]: first byte, byte after the last, and number for people."""


class Lines(Rows):
    """Rows of a JSONL file, or of a JSON array.

    Args:
        path: of the file.
        spans: of its rows, as `line_spans` and `array_spans` find them.
        reader: reads them.
        unit: what a row is called: "line" or "row".
    """

    def __init__(self, name: str, format: str, path: Path, spans: Spans, reader: RowReader, unit: str) -> None:
        super().__init__(name, format)
        self.path, self.spans, self.reader, self.unit = path, spans, reader, unit

    def __len__(self) -> int:
        return len(self.spans)

    def place(self, number: int) -> str:
        return f"{self.path}, {self.unit} {self.spans[number, 2]}"

    def read(self, number: int) -> Sample:
        start, stop, named = self.spans[number].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read(stop - start)
        return self.reader(parsed(text), str(named))


def open_lines(name: str, path: Path, reader: RowReader) -> Lines:
    """A JSONL file."""
    if path.stat().st_size < LARGE:
        return Lines(name, "jsonl", path, line_spans(path), reader, "line")
    arrays = remembered(path, "lines", lambda: {"spans": line_spans(path)})
    return Lines(name, "jsonl", path, arrays["spans"], reader, "line")


def line_spans(path: Path) -> Spans:
    """Where the lines of a file are, its blank ones left out; numbers are those of editors, from 1."""
    ends, size = [], 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
            size += len(chunk)
    stops = np.concatenate([*ends, [size]]).astype(np.int64)
    spans = np.stack([np.concatenate([[0], stops[:-1] + 1]), stops, np.arange(1, len(stops) + 1)], 1)
    keep = spans[:, 0] < spans[:, 1]
    with path.open("rb") as file:
        for place in np.flatnonzero(keep & (spans[:, 1] - spans[:, 0] < 16)):  # so short a line may be blank
            file.seek(spans[place, 0])
            keep[place] = bool(file.read(spans[place, 1] - spans[place, 0]).strip())
    return spans[keep]


def array_spans(text: str) -> Spans:
    """Where the elements of a JSON array are, in bytes; numbers are those of elements, from 0.

    json.JSONDecodeError if it is none.
    """
    decode: Callable[[str, int], tuple[object, int]] = json.JSONDecoder().raw_decode
    spans: list[tuple[int, int, int]] = []
    byte, char = 0, 0  # of the text so far

    def skip(place: int) -> int:
        found = SPACE.match(text, place)
        assert found  # it may be empty
        return found.end()

    place = skip(skip(text.startswith(BOM)) + 1)  # after the bracket
    if not text.startswith("]", place):
        while True:
            _, stop = decode(text, place)
            start = byte + len(text[char:place].encode())
            byte, char = start + len(text[place:stop].encode()), stop
            spans.append((start, byte, len(spans)))
            place = skip(stop)
            if not text.startswith(",", place):
                break
            place = skip(place + 1)
    if not text.startswith("]", place):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    return np.array(spans, dtype=np.int64).reshape(-1, 3)
