"""Leaves out of a data set what is broken, what is there twice or nearly, and text that does not fit its images."""

import io
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmlm.data.fetch import Remote, is_url
from mmlm.data.folder import SUFFIXES
from mmlm.data.likeness import Alike, distance
from mmlm.data.row import row_of
from mmlm.data.rows import Rows
from mmlm.data.sample import Sample
from mmlm.data.walk import digest, walk
from mmlm.files import new_folder
from vision.ahead import ahead
from vision.files import write_json
from vision.images import Lazy, Named, identity, open_image, opened

DATA, REPORT, IMAGES = "data.jsonl", "report.json", "images"
BATCH = 64  # samples that are scored at once
EACH = 1000  # images in a folder

Report = dict[str, Any]


class Scorer(Protocol):
    """What `mmlm.data.clip.Clip` does."""

    def pixels(self, image: Image.Image) -> Tensor: ...

    def scores(self, images: Sequence[Sequence[Tensor]], texts: Sequence[str]) -> list[float]: ...


def prune(
    rows: Rows,
    out: str | os.PathLike[str],
    *,
    near: int = 3,
    images_alone: bool = False,
    clip: Scorer | None = None,
    least: float = 0.2,
) -> Report:
    """Writes the samples of a data set that are worth keeping, in their order, into a new folder; returns the report.

    `out`/data.jsonl has the samples, which `open_data(out)` reads: their images by paths relative to `out` where they
    are files, else copied into `out`/images. `out`/report.json says what was left out, and why. The folder is there
    whole or not at all.

    Left out are, in this order:

    * rows that are broken;
    * a sample whose every image looks like its counterpart in an earlier one that was kept (at most `near` of the 64
      bits of a difference hash differ, and colors by 16 of 255), and whose turns are word for word the same. Several
      texts about one image are no duplicates, unless `images_alone` says that texts do not count. Of samples without
      images, those whose turns are the same, whatever `images_alone` says.
    * with `clip`, a sample whose images and learnt text (all its learnt turns, put together) fit by less than `least`.
      Those without images are kept.

    FileExistsError if `out` is there already; ValueError if nothing is left, and for a `near` that makes no sense.
    """
    alike, left_out = Alike(near), {"broken": list[Report](), "near": list[Report](), "clip": list[Report]()}
    out = Path(out)
    with new_folder(out) as draft:
        kept = []
        for row in walk(rows, "reading"):
            if row.sample is None:
                left_out["broken"].append({"row": row.number, "why": row.why})
                continue
            images = [seen.likeness for seen in row.images]
            among: Hashable = None if images_alone and images else digest(row.sample.turns)
            first = alike.find(among, images)
            if first is None:
                alike.add(row.number, among, images)
                kept.append(row.number)
            else:
                bits = distance(alike.images[first], images)
                left_out["near"].append({"row": row.number, "of": first, "bits": bits})
        if clip is not None:
            scores = dict(score(rows, kept, clip))
            left_out["clip"] = [
                {"row": row, "score": round(scores[row], 4)} for row in kept if scores.get(row, least) < least
            ]
            kept = [row for row in kept if scores.get(row, least) >= least]
        if not kept:
            counts = ", ".join(f"{len(its):,} {name}" for name, its in left_out.items())
            raise ValueError(f"{rows.name}: nothing is left of {len(rows):,} rows ({counts}); is it the right data?")
        with (draft / DATA).open("w", encoding="utf-8") as file:
            Writer(draft, out).write_all((rows[number] for number in tqdm(kept, desc="writing", unit="sample")), file)
        for its in left_out.values():
            for one in its:
                one["place"] = rows.place(one["row"])
                if "of" in one:
                    one["of place"] = rows.place(one["of"])
        report = {
            "data": rows.name,
            "format": rows.format,
            "rows": len(rows),
            "kept": len(kept),
            "settings": {"near": near, "images_alone": images_alone, "least": least if clip else None},
            "left out": left_out,
        }
        write_json(draft / REPORT, report)
    return report


def score(rows: Rows, numbers: Sequence[int], clip: Scorer) -> Iterator[tuple[int, float]]:
    """(row, fit of its images and its learnt text) of each row that has images, with a progress bar."""

    def read(number: int) -> tuple[int, list[Tensor], str]:
        sample: Sample = rows[number]
        text = " ".join(turn.text for turn in sample.turns if turn.learnt)
        return number, [clip.pixels(open_image(opened(image))) for image in sample.images], text

    each = iter(tqdm(ahead(read, numbers, alone=False), total=len(numbers), desc="scoring", unit="sample"))
    while batch := list(islice(each, BATCH)):
        shown = [one for one in batch if one[1]]
        if shown:
            found = clip.scores([images for _, images, _ in shown], [text for _, _, text in shown])
            yield from zip((number for number, _, _ in shown), found, strict=True)


class Writer:
    """Writes samples as JSONL that `open_data` reads.

    Args:
        folder: that images are copied into which are no files.
        home: where that folder will be in the end.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.names: dict[Hashable, str] = {}  # of images that were copied

    def write_all(self, samples: Iterator[Sample], file: TextIO) -> None:
        for sample in samples:
            row = row_of(sample, [self.name(image) for image in sample.images])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def name(self, image: Lazy) -> str:
        """What an image is called in the file."""
        if isinstance(image, str | os.PathLike) and not is_url(os.fspath(image)):
            return os.path.relpath(os.fspath(image), self.home)
        key = identity(image)
        if key not in self.names:
            self.names[key] = self.copied(image)
        return self.names[key]

    def copied(self, image: Lazy) -> str:
        """A file's bytes as they are; what has none as PNG. A table may name a file."""
        number, source = len(self.names), opened(image)
        if isinstance(source, str | os.PathLike):
            if not isinstance(image, Remote):
                return self.name(source)
            source = Named(Path(source).read_bytes(), os.fspath(source))
        if isinstance(source, bytes):
            data, suffix = bytes(source), suffix_of(source)
        else:
            buffer = io.BytesIO()
            open_image(source).save(buffer, "PNG")
            data, suffix = buffer.getvalue(), ".png"
        name = f"{IMAGES}/{number // EACH:04}/{number:07}{suffix}"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name


def suffix_of(data: bytes) -> str:
    """That a file of these bytes should have."""
    suffix = os.path.splitext(getattr(data, "name", ""))[1].lower()
    if suffix in SUFFIXES:
        return suffix
    with Image.open(io.BytesIO(data)) as image:
        return f".{(image.format or 'image').lower()}"


def table(report: Report, out: str | os.PathLike[str]) -> str:
    """A report for people."""
    words: dict[str, Callable[[Report], str]] = {
        "broken": lambda one: str(one["why"]),
        "near": lambda one: f"{one['place']} is {one['of place']}, but for {one['bits']} bits",
        "clip": lambda one: f"{one['place']} fits by {one['score']}",
    }
    titles = {"broken": "broken", "near": "there already", "clip": "whose text does not fit"}
    lines = [f"{report['data']}: {report['kept']:,} of {report['rows']:,} rows kept, in {out}"]
    for name, its in report["left out"].items():
        if its:
            lines.append(f"  {len(its):,} left out, {titles[name]}:")
            lines += [f"    {words[name](one)}" for one in its[:5]]
            lines += [f"    ... and {len(its) - 5:,} more; {REPORT} has all"] * (len(its) > 5)
    return "\n".join(lines)
