"""`python -m finetune.zener probe|tune CONFIG`: token configurations compared on the Zener test.

Nothing heavy is imported before it runs.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from eval.commands import sizes
from finetune.config import read_settings
from finetune.options import add_fields, resolved
from finetune.zener_config import ZenerConfig
from mmlm.cli import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Compares token configurations on the Zener test: the same pictures, steps and seed for each."""
    parser = Parser(prog="python -m finetune.zener", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("probe", "tune"), help="a head on the embeddings, or the default decoder")
    parser.add_argument("settings", metavar="CONFIG", help="a YAML file, as configs/zener.yaml")
    parser.add_argument("--run", dest="folder", default="runs/zener", metavar="FOLDER", help="where results are kept")
    parser.add_argument("--overwrite", action="store_true", help="start over what is tuned there; else it goes on")
    parser.add_argument("--page", metavar="FILE", help="write tables into this page, too, and the plot beside it")
    add_fields(parser, ZenerConfig())
    args = parser.parse_args(argv)
    return guarded(lambda: compare(args))


def compare(args: Namespace) -> int:
    """Does what `main` was asked for, and writes report and plot into the folder."""
    config = resolved(read_settings(ZenerConfig(), Path(args.settings)), args)
    try:
        sizes(config.k)
    except ArgumentTypeError as error:
        raise ValueError(f"k: {error}") from error
    from eval.plots import check_matplotlib, plot_zener
    from finetune.compare import probe, tune
    from finetune.page import put, tables
    from vision.files import write_json

    check_matplotlib()  # rather than after some minutes
    folder = Path(args.folder)
    report = probe(config) if args.what == "probe" else tune(config, folder, overwrite=args.overwrite)
    write_json(folder / f"{args.what}.json", report)
    curves = {name: one["k"] for name, one in report["tokens"].items()}
    plot_zener(curves, folder / f"{args.what}.png")
    print(f"\n{tables(report)}\n\n{folder / args.what}.json has more, {folder / args.what}.png is a plot of it.")
    if args.page:
        page = Path(args.page)
        put(page, args.what, tables(report))
        plot_zener(curves, page.with_name(f"{page.stem}-{args.what}.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
