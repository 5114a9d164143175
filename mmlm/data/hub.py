"""What the library `datasets` reads: data sets of the hub, those that it saved, parquet and arrow files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmlm.data.row import IMAGES, RowReader, as_list, brief
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample
from vision.images import ImageError, Lazy, Named

EXTRA = 'comes with an extra: pip install -e ".[data]"'
SUFFIXES = (".parquet", ".arrow")
SAVED = ("dataset_info.json", "dataset_dict.json")  # one of them is in a folder that save_to_disk wrote


@dataclass(frozen=True)
class Cell:
    """An image of a table."""

    table: Any = field(compare=False, repr=False)
    """Of images alone, as they are stored."""
    name: str
    """Of the data set."""
    fingerprint: str
    row: int
    column: str
    place: int
    """In a list of images."""

    def __call__(self) -> Named | str:
        """Its bytes, or its path. ImageError if it has neither."""
        value = as_list(self.table[self.row][self.column])[self.place]
        where = f"{self.name}, row {self.row}, {self.column}"
        match value:
            case bytes():
                return Named(value, where)
            case {"bytes": bytes() as data}:
                return Named(data, where)
            case {"path": str() as path}:
                return path
        raise ImageError(f"{where}: {brief(value)} is no image; it takes the bytes of an image file, or a path")


class Table(Rows):
    """Rows of a data set of the library `datasets`, fields as in JSONL. Images may be stored in it."""

    def __init__(self, name: str, format: str, table: Any, reader: RowReader) -> None:
        super().__init__(name, format)
        features = dict(table.features)
        for column, feature in features.items():
            if (plain := undecoded(feature)) is not None:
                table = table.cast_column(column, plain)
        stored = [column for column, feature in features.items() if undecoded(feature) is not None]
        stored += [
            column for column in IMAGES if column in features and column not in stored and holds_bytes(features[column])
        ]
        self.column = stored[0] if stored else ""
        if len(stored) > 1:
            raise ValueError(
                f"{name}: images are in the columns {', '.join(stored)}, and one is taken; remove_columns() of "
                "datasets leaves others out of a copy that save_to_disk() keeps"
            )
        self.words = table.remove_columns(stored)
        self.pictures = table.select_columns(stored)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.pictures) if self.column else len(self.words)

    def place(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def read(self, number: int) -> Sample:
        return self.reader(self.words[number] if self.words.column_names else {}, str(number), self.images(number))

    def images(self, number: int) -> list[Lazy] | None:
        """The row's images; None where the table has none in it."""
        if not self.column:
            return None
        value = self.pictures[number][self.column]
        count, mark = 0 if value is None else len(as_list(value)), self.pictures._fingerprint
        return [Cell(self.pictures, self.name, mark, number, self.column, place) for place in range(count)]


def undecoded(feature: Any) -> Any:
    """The feature of images, which leaves them as they are stored; None for others."""
    from datasets import Image, LargeList, List

    if isinstance(feature, Image):
        return Image(decode=False)
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, Image):
        return type(feature)(Image(decode=False))
    return None


def holds_bytes(feature: Any) -> bool:
    """Does a column that parquet does not call images hold them all the same?"""
    from datasets import LargeList, List, Value

    if isinstance(feature, List | LargeList):
        return holds_bytes(feature.feature)
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def open_table(
    name: str, format: str, paths: Sequence[Path], split: str | None, subset: str | None, reader: RowReader
) -> Table:
    """A data set of the hub, if `paths` are none, or of a folder, or of files.

    ValueError, naming the splits or subsets there are, for one that there is not; ImportError, with the mend, if the
    library is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"the library datasets, which reads {name}, {EXTRA}") from error
    try:
        files, kinds = [str(path) for path in paths], {path.suffix.lower() for path in paths}
        if format == "saved":
            found = datasets.load_from_disk(files[0])
        elif kinds == {".arrow"}:
            found = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        elif kinds == {".parquet"}:
            found = datasets.load_dataset("parquet", data_files=files)
        else:
            found = datasets.load_dataset(*files or [name], subset)
    except Exception as error:  # of many kinds: the network's, the library's, arrow's
        where = "check the name, and that there is a network" if format == "hub" else "fetch or save it anew"
        raise ValueError(f"{name}: datasets cannot read it ({type(error).__name__}: {error}); {where}") from error
    if isinstance(found, dict):
        found = chosen(name, found, split)
    elif split is not None:
        raise ValueError(f"{name}: split={split!r}, but it has no splits; leave split= (--split) out")
    return Table(name, format, found, reader)


def chosen(name: str, found: dict[str, Any], split: str | None) -> Any:
    """The split that was asked for; the only one, or "train", if none was."""
    default = next(iter(found)) if len(found) == 1 else "train"
    if (split or default) not in found:
        asked = f"split={split!r} is not there" if split else "which split is meant?"
        raise ValueError(f"{name}: {asked}; there are {', '.join(map(repr, found))}: split= (--split)")
    return found[split or default]


def is_saved(folder: Path) -> bool:
    """Did save_to_disk write it?"""
    return any(os.path.isfile(folder / name) for name in SAVED)
