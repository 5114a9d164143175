"""webdataset: tars of files, of which those of one name and several suffixes are a sample. Read where they lie.

000017.jpg, 000017.txt; or 000017.0.jpg, 000017.1.jpg, 000017.json, whose row has what is said. A tar is walked through
once; where its members are is kept in the cache folder.
"""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmlm.data.folder import is_image
from mmlm.data.index import Arrays, remembered
from mmlm.data.row import RowReader, learnt, parsed
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample
from vision.images import ImageError, Named


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    path: str
    """Of the tar."""
    name: str
    """In it."""
    offset: int
    size: int
    """In bytes."""

    def __call__(self) -> Named:
        """Its bytes. ImageError if the tar is not what it was."""
        return Named(self.read(ImageError), f"{self.path}: {self.name}")

    def read(self, refusal: type[ValueError] = ValueError) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise refusal(f"{self.path}: cannot be read ({error.strerror}); has it been moved?") from error
        if len(data) < self.size:
            raise refusal(f"{self.path}: shorter than it was; open the data set anew")
        return data


@dataclass(frozen=True)
class Index:
    """Where the samples of a tar are. S samples, M members."""

    keys: NDArray[np.uint8]
    """Their names without suffixes, one after the other, as UTF-8."""
    ends: NDArray[np.int64]
    """[S]: where each key ends."""
    firsts: NDArray[np.int64]
    """[S + 1]: of its members the first; then M."""
    members: NDArray[np.int64]
    """[M, 3]: suffix, first byte, bytes."""
    suffixes: list[str]

    def key(self, sample: int) -> str:
        return self.keys[self.ends[sample - 1] if sample else 0 : self.ends[sample]].tobytes().decode()


class Shards(Rows):
    """Samples of tars, in the order of the tars and of what is in them."""

    def __init__(self, name: str, paths: Sequence[Path], reader: RowReader) -> None:
        super().__init__(name, "tars")
        self.paths, self.reader = [str(path) for path in paths], reader
        bar = tqdm(paths, desc="tars", unit="tar", disable=len(paths) < 2, leave=False)
        self.indices = [index_of(path) for path in bar]
        self.stops = np.cumsum([len(index.ends) for index in self.indices])

    def __len__(self) -> int:
        return int(self.stops[-1])

    def find(self, number: int) -> tuple[int, int]:
        """(tar, sample in it)"""
        shard = int(np.searchsorted(self.stops, number, side="right"))
        return shard, number - (int(self.stops[shard - 1]) if shard else 0)

    def place(self, number: int) -> str:
        shard, sample = self.find(number)
        return f"{self.paths[shard]}: {self.indices[shard].key(sample)}"

    def members(self, number: int) -> list[Member]:
        shard, sample = self.find(number)
        index = self.indices[shard]
        key, rows = index.key(sample), index.members[index.firsts[sample] : index.firsts[sample + 1]].tolist()
        return [Member(self.paths[shard], f"{key}.{index.suffixes[which]}", *where) for which, *where in rows]

    def read(self, number: int) -> Sample:
        shard, sample = self.find(number)
        key, members = self.indices[shard].key(sample), self.members(number)
        named = {member.name.removeprefix(f"{key}."): member for member in members}
        images = [member for member in members if is_image(f"x.{member.name.removeprefix(f'{key}.')}")]
        if "txt" in named:
            said = learnt(text_of(named["txt"]).removesuffix("\n").removesuffix("\r"), "txt")
            return Sample.pair(key, images, self.reader.prompt, said, (said,), "caption")
        if "json" in named:
            return self.reader(parsed(named["json"].read()), key, images)
        raise ValueError(f"no .txt and no .json in it, so that nothing is said; it has {', '.join(named)}")


def text_of(member: Member) -> str:
    try:
        return member.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def index_of(path: Path) -> Index:
    """The index of a tar. ValueError if it is damaged; FileNotFoundError if it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tar; check the path")
    arrays = remembered(path, "tar", lambda: make_index(path))
    return Index(**arrays | {"suffixes": arrays["suffixes"].tolist()})


def make_index(path: Path) -> Arrays:
    """Walks through a tar: the fields of its `Index`. ValueError, with the mend, if it is none, or not whole."""
    size = path.stat().st_size
    keys: list[bytes] = []
    firsts: list[int] = []
    members: list[tuple[int, int, int]] = []
    suffixes: dict[str, int] = {}
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would hold all
                folder, base = os.path.split(member.name)
                stem, dot, suffix = base.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue  # folders, and what systems hide
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                key = os.path.join(folder, stem)
                if key != last:
                    keys.append(key.encode(errors="replace"))
                    firsts.append(len(members))
                    last = key
                which = suffixes.setdefault(suffix.lower(), len(suffixes))
                members.append((which, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:  # damaged headers raise any of them
        raise ValueError(
            f"{path}: no tar, packed, or not whole ({error}); fetch it again, and unpack a .tar.gz"
        ) from error
    return {
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "firsts": np.array([*firsts, len(members)], dtype=np.int64),
        "members": np.array(members, dtype=np.int64).reshape(-1, 3),
        "suffixes": np.array(list(suffixes), dtype=np.str_),
    }
