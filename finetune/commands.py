"""The command line's training verbs. Nothing heavy is imported before one runs."""

from argparse import ArgumentParser, Namespace


def quickstart(parser: ArgumentParser) -> None:
    """Fetch real parts and data, fine-tune, evaluate and show, without a GPU or an account."""
    from finetune.config import QuickstartConfig
    from finetune.options import add_fields

    parser.add_argument(
        "--run", dest="folder", default="runs/quickstart", metavar="FOLDER", help="where the run is kept"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument("--overwrite", action="store_true", help="start the run that is there over")
    add_fields(parser, QuickstartConfig())
    parser.set_defaults(run=run_quickstart)


def run_quickstart(args: Namespace) -> None:
    from pathlib import Path

    from finetune.config import QuickstartConfig, read
    from finetune.folder import check_folder, has_run
    from finetune.options import resolved

    folder = Path(args.folder)
    config = resolved(read(QuickstartConfig(), folder) if args.resume else QuickstartConfig(), args)
    check_folder(config, folder, resume=args.resume, overwrite=args.overwrite)  # before torch is loaded
    from finetune.quickstart import quickstart as walk

    try:
        walk(config, folder, resume=args.resume, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        hint = "--resume goes on with it" if has_run(folder) else "the same command starts again"
        raise KeyboardInterrupt(hint) from error
