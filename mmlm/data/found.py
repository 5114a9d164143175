"""Looks at what a source names and says which format it is in."""

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from mmlm.data.fetch import fetch, is_url
from mmlm.data.folder import find_pairs
from mmlm.data.hub import SUFFIXES, is_saved
from mmlm.data.named import SETS, is_named
from mmlm.names import is_hub_id

FORMATS = {
    "folder": "a folder of images with a .txt beside each",
    "jsonl": "a .jsonl file",
    "json": "a .json file: LLaVA's, COCO's captions, VQAv2's questions, or an array of rows",
    "tars": "webdataset's .tar files, as data-{000..009}.tar",
    "table": "parquet or arrow files",
    "saved": "a folder that save_to_disk of datasets wrote",
    "hub": "the id of a data set on the hub",
}
"""Names of formats, and what they are, for people."""

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Found:
    """What a source turned out to be."""

    format: str
    """Of `FORMATS`, or "named"."""
    paths: list[Path]
    """Its files, or its folder; of the hub's, and of one by name, none."""
    names: list[str]
    """Of a folder its images, relative to it."""
    split: str | None
    """That is still to be chosen."""


def look(source: str, format: str | None, split: str | None) -> Found:
    """Finds a source's files and says their format, which may be said beforehand.

    ValueError, naming what was looked for and the mend, if there is nothing, or no format in it, or more than one.
    FileNotFoundError for a path that there is not.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; there are {', '.join(FORMATS)}")
    if is_named(source):
        return Found("named", [], [], split)
    if format == "hub":
        return Found("hub", [], [], split)
    path = Path(source)
    if is_url(source):
        files(source, [Path(urlsplit(one).path) for one in expanded(source)], format, split)  # before much is fetched
        paths = [fetch(one) for one in expanded(source)]
    elif path.is_dir():
        return inside(path, format, split)
    elif path.exists():
        paths = [path]
    elif paths := matched(source):
        pass
    elif format is None and "/" in source and is_hub_id(source) and not Path(source).parent.exists():
        return Found("hub", [], [], split)
    else:
        named = f", or the name, of {', '.join(SETS)}" if ":" in source else ""
        raise FileNotFoundError(
            f"{source}: no such file or folder; check the path{named}, or say format='hub' (--format hub)"
        )
    return files(source, paths, format, split)


def files(source: str, paths: list[Path], format: str | None, split: str | None) -> Found:
    """Files, whose names tell the format."""
    kinds = {format} if format else {kind_of(path) for path in paths}
    if "" in kinds or len(kinds) != 1:
        raise ValueError(f"{source}: of no known format; {known()}; say which, format= (--format)")
    (kind,) = kinds
    if len(paths) > 1 and kind not in ("tars", "table"):
        raise ValueError(f"{source}: {len(paths)} files, {paths[0]} and others; name one, or mix them as several DATA")
    if split is not None:
        raise ValueError(f"{source}: split={split!r}, but a file has no splits; leave split= (--split) out")
    return Found(str(kind), paths, [], split)


def inside(folder: Path, format: str | None, split: str | None) -> Found:
    """A folder, by what is in it."""
    if format in (None, "saved") and is_saved(folder):
        return Found("saved", [folder], [], split)
    if split is not None and (found := part_of(folder, split)):
        whole = len(found) == 1 and found[0].is_dir()
        return inside(found[0], format, None) if whole else files(str(folder), found, format, None)
    here = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    kinds = {kind: [path for path in here if kind_of(path) == kind] for kind in ("tars", "jsonl", "json")}
    if format in (None, "table") and any(map(is_table, tables(folder))):
        return Found("table", [folder], [], split)
    if split is not None:
        raise ValueError(
            f"{folder}: split={split!r} is not there; looked for {folder / split}, and {split}.jsonl, {split}.json, "
            f"{split}*.tar beside it"
        )
    if format in (None, "folder"):
        pairs = [] if format is None and (kinds["tars"] or kinds["jsonl"]) else find_pairs(folder)
        if pairs or format:
            if not pairs:
                raise ValueError(f"{folder}: no image in it has its caption beside it, as cat.jpg and cat.txt")
            return Found("folder", [folder], pairs, None)
    kinds = {kind: paths for kind, paths in kinds.items() if paths and format in (None, kind)}
    if len(kinds) > 1:
        kinds.pop("json", None)  # what is told about the others
    several = [path for kind, paths in kinds.items() if kind != "tars" for path in paths]
    if not kinds:
        raise ValueError(f"{folder}: no data in it; {known()}")
    if len(kinds) > 1 or len(several) > 1:
        names = ", ".join(path.name for paths in kinds.values() for path in paths[:3])
        raise ValueError(f"{folder}: which of {names} is meant? Name the file, or the split by split= (--split)")
    ((kind, paths),) = kinds.items()
    return Found(kind, paths, [], None)


def part_of(folder: Path, split: str) -> list[Path]:
    """What in a folder is named as a split; [] if nothing is."""
    if (folder / split).is_dir():
        return [folder / split]
    for name in (f"{split}.jsonl", f"{split}.json"):
        if (folder / name).is_file():
            return [folder / name]
    return sorted(path for path in folder.glob(f"{glob.escape(split)}*.tar"))


def kind_of(path: Path) -> str:
    """The format that a file's name tells; "" if it tells none."""
    suffix = path.suffix.lower()
    kinds = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".tar": "tars"} | dict.fromkeys(SUFFIXES, "table")
    return kinds.get(suffix, "")


def tables(folder: Path) -> Iterator[Path]:
    """Files of a folder and of those in it, where the hub keeps parquet."""
    yield from folder.glob("*")
    yield from folder.glob("*/*")


def is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def known() -> str:
    return f"it takes {'; '.join(FORMATS.values())}"


def expanded(name: str) -> list[str]:
    """`data-{000..009}.tar` and `{train,val}.tar` -> all that they name; a name without braces itself."""
    pieces = BRACES.split(name)
    return [
        "".join(chosen)
        for chosen in product(*([piece] if place % 2 == 0 else options(piece) for place, piece in enumerate(pieces)))
    ]


def options(inner: str) -> Iterable[str]:
    """What the inside of braces stands for."""
    if (found := RANGE.fullmatch(inner)) is None:
        return inner.split(",")
    first, last = found.groups()
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def matched(source: str) -> list[Path]:
    """The files that a name with {000..009} or * ? [ in it stands for, in order; [] if there is none.

    FileNotFoundError if of several names in braces some are there.
    """
    found = {name: sorted(glob.glob(name, recursive=True)) for name in expanded(source)}
    missing = [name for name, paths in found.items() if not paths]
    if missing and len(missing) < len(found):
        raise FileNotFoundError(f"{source}: {len(missing)} of {len(found)} are not there, as {missing[0]}; fetch them")
    return [Path(path) for paths in found.values() for path in paths]
