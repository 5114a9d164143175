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

    from finetune.config import QuickstartConfig, check_resumable, read
    from finetune.folder import check_folder
    from finetune.options import resolved

    folder = Path(args.folder)
    check_folder(folder, resume=args.resume, overwrite=args.overwrite)  # these three before torch is loaded
    config = resolved(read(QuickstartConfig(), folder) if args.resume else QuickstartConfig(), args)
    if args.resume:
        check_resumable(config, folder)
    from finetune.quickstart import quickstart as walk

    try:
        walk(config, folder, resume=args.resume, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*error.args or ["the same command starts again"]) from error
