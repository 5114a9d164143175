"""Opens data, whatever it is: a folder, a file, tars, a URL, an id of the hub."""

import os
from functools import partial
from pathlib import Path

from mmlm.data.folder import Pairs
from mmlm.data.found import look
from mmlm.data.hub import open_table
from mmlm.data.lines import open_lines
from mmlm.data.named import open_named
from mmlm.data.row import RowReader
from mmlm.data.rows import Rows
from mmlm.data.shards import Shards
from mmlm.data.tables import open_json
from mmlm.names import CAPTION_PROMPT


def open_data(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    subset: str | None = None,
    prompt: str = CAPTION_PROMPT,
    urls: bool = False,
) -> Rows:
    """A data set as a sequence of samples, each read when it is asked for.

    Args:
        source: what holds it, told by looking at it:

            * a folder of images with their captions beside them, cat.jpg and cat.txt, folders below it, too;
            * a JSONL file with the fields of `mmlm.data.row`;
            * a JSON file: LLaVA's, COCO's captions, VQAv2's questions, or an array of rows as in JSONL;
            * webdataset's tars, one or several: "data-{000..009}.tar", "data-*.tar", a folder of them;
            * what the library datasets reads: "owner/name" on the hub, a folder that save_to_disk wrote, parquet and
              arrow files, fields as in JSONL;
            * a folder with one of these files in it; an http(s) URL of one, which is fetched into the cache folder;
            * "NAME:FOLDER": a data set of `mmlm.data.named`, its official files unpacked in a folder.
        split: of a data set of the hub, or of one by name; of a folder, what in it is named so.
        format: a name of `mmlm.data.found.FORMATS`, where looking does not tell.
        images: folder that relative paths of images are relative to, where it is not the file's own (or COCO's).
        annotations: of VQAv2's questions, where they are not beside them.
        subset: of a data set of the hub that has several.
        prompt: what asks for a caption; give the adapter's config's `caption_prompt`.
        urls: may images be fetched whose URLs are in rows?

    ValueError (FileNotFoundError for a path) with the mend for what is wrong with the whole; a row that is broken is
    told when it is read.
    """
    name = os.fspath(source)
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"images={os.fspath(images)!r}: no such folder; check the path")
    found = look(name, format, split)
    read_by = partial(RowReader, prompt=prompt, urls=urls)
    match found.format:
        case "named":
            for option, value in {"format": format, "annotations": annotations, "subset": subset}.items():
                if value is not None:
                    raise ValueError(f"{name}: its files are known by its name; leave {option}= (--{option}) out")
            rows: Rows = open_named(name, split, images, read_by)
        case "folder":
            rows = Pairs(name, found.paths[0], found.names, prompt)
        case "jsonl":
            rows = open_lines(name, found.paths[0], read_by(str(images or found.paths[0].parent)))
        case "json":
            rows = open_json(name, found.paths[0], images, annotations, read_by)
        case "tars":
            rows = Shards(name, found.paths, read_by(str(images or found.paths[0].parent)))
        case kind:
            own = found.paths[0].parent if found.paths else Path()
            rows = open_table(name, kind, found.paths, found.split, subset, read_by(str(images or own)))
    if not len(rows):
        raise ValueError(f"{name}: empty, not one row; check that it is the right file")
    return rows
