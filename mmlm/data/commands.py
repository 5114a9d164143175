"""The command line's verb for data. Nothing heavy is imported before it runs."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

SOURCE = "a folder, file, tars, URL, a data set's id on the hub, or its name and folder, as vqav2:/data/vqa"


def data(parser: ArgumentParser) -> None:
    """Check data before training, or prune it."""
    what = parser.add_subparsers(metavar="WHAT", required=True)
    for verb, line in ((check, "tell what is in data, and what is wrong with it"), (prune, "keep what is worth it")):
        verb(what.add_parser(verb.__name__, help=line, description=verb.__doc__, allow_abbrev=False))


def check(parser: ArgumentParser) -> None:
    """Read every row and image once: what is there, how long it is, what is broken, twice, or in two DATA.

    The exit status is 1 if anything is broken.
    """
    parser.add_argument("data", nargs="+", metavar="DATA", help=f"{SOURCE}; several: leaks between them are told")
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="of each DATA; several, if repeated: leaks between them are told",
    )
    add_source(parser)
    parser.add_argument("--model", default="", metavar="RUN", help="count tokens as this saved adapter does")
    parser.add_argument(
        "--decoder",
        default="",
        metavar="NAME",
        help="... as this decoder does: hub id or folder (the default one, if it is here; else characters)",
    )
    parser.add_argument(
        "--near", type=bits, metavar="BITS", help="tell images that differ in so many of 64 bits, too, between DATA"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was found there")
    parser.set_defaults(run=run_check)


def run_check(args: Namespace) -> int:
    from mmlm.data.check import check, table
    from mmlm.data.measure import find_measure
    from vision.files import write_json

    names = {f"{name} [{split}]" if split else name: (name, split) for name in args.data for split in _splits(args)}
    sets = {name: _open(args, *source) for name, source in names.items()}  # first what may be mistyped
    measure = find_measure(args.model, args.decoder)
    report = check(sets, measure, args.near)
    if args.json:
        write_json(Path(args.json), report)
    print(table(report, sets))
    return int(report["broken"] > 0)


def prune(parser: ArgumentParser) -> None:
    """Write a copy of data without what is broken, there twice or nearly, or said of the wrong image.

    Twice is a sample whose images nearly are those of an earlier one, and whose text is the same. OUT/data.jsonl has
    what is kept, OUT/report.json what is not, and why.
    """
    parser.add_argument("data", metavar="DATA", help=SOURCE)
    parser.add_argument("out", metavar="OUT", help="folder to write, not there yet")
    parser.add_argument("--split", metavar="NAME", help="of DATA")
    add_source(parser)
    parser.add_argument(
        "--near", type=bits, default=3, metavar="BITS", help="of 64 in which images may differ and be the same (3)"
    )
    parser.add_argument("--images-alone", action="store_true", help="samples with the same images are the same")
    parser.add_argument("--clip", metavar="NAME", help="score texts: open_clip:MODEL/TAG, where TAG may be a path")
    parser.add_argument(
        "--least", type=float, default=0.2, metavar="SCORE", help="leave out what CLIP scores lower (0.2)"
    )
    parser.set_defaults(run=run_prune)


def run_prune(args: Namespace) -> None:
    from mmlm.data.prune import prune, table

    rows, clip = _open(args, args.data, args.split), None
    if args.clip:
        from mmlm.data.clip import Clip

        clip = Clip(args.clip)
    report = prune(rows, args.out, near=args.near, images_alone=args.images_alone, clip=clip, least=args.least)
    print(table(report, args.out))


def bits(word: str) -> int:
    """A whole number from 0 to 15. ArgumentTypeError for anything else."""
    if word.isdecimal() and int(word) < 16:
        return int(word)
    raise ArgumentTypeError(f"{word!r} is no whole number from 0 to 15")


def add_source(parser: ArgumentParser, prompt: str = "what asks for a caption (Describe the image.)") -> None:
    """The options that say how DATA is read; `prompt` is the help of --prompt."""
    parser.add_argument(
        "--format", metavar="NAME", help="folder, jsonl, json, tars, table, saved or hub (told by looking at it)"
    )
    parser.add_argument("--images", metavar="FOLDER", help="that paths of images are relative to (the file's own)")
    parser.add_argument("--annotations", metavar="FILE", help="of VQAv2's questions (beside them)")
    parser.add_argument("--subset", metavar="NAME", help="of a data set on the hub that has several")
    parser.add_argument("--prompt", metavar="TEXT", help=prompt)
    parser.add_argument("--urls", action="store_true", help="fetch images whose URLs are in rows")


def _splits(args: Namespace) -> list[str | None]:
    return args.split or [None]


def _open(args: Namespace, source: str, split: str | None) -> Any:
    """The data set, of the type `Rows`, which would import numpy."""
    from mmlm.data.source import Source
    from mmlm.names import CAPTION_PROMPT

    said = {entry.name: getattr(args, entry.name) for entry in fields(Source)} | {"split": split}
    return Source(**said).open(source, CAPTION_PROMPT if args.prompt is None else args.prompt)
