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


def finetune(parser: ArgumentParser) -> None:
    """Fine-tune an adapter on your own images and texts, on one process or, under a launcher, on many."""
    from finetune.options import add_fields
    from finetune.run_config import RunConfig

    parser.add_argument("settings", metavar="CONFIG", help="a YAML file, as configs/finetune.yaml")
    parser.add_argument("--run", dest="folder", default="runs/finetune", metavar="FOLDER", help="where the run is kept")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on with the run that is there; auto: if there is one",
    )
    parser.add_argument("--overwrite", action="store_true", help="start the run that is there over")
    add_fields(parser, RunConfig())
    parser.set_defaults(run=run_finetune)


def run_finetune(args: Namespace) -> None:
    import sys
    from pathlib import Path

    from finetune.config import read_settings
    from finetune.folder import has_run
    from finetune.options import resolved
    from finetune.run_config import RunConfig, check_run
    from mmlm.cli import command
    from mmlm.launched import is_first

    folder = Path(args.folder)
    config = resolved(read_settings(RunConfig(), Path(args.settings)), args)
    resume = has_run(folder) if args.resume == "auto" else args.resume == "yes"
    if is_first():  # before torch is loaded
        check_run(config, folder, resume=resume, overwrite=args.overwrite)
    from finetune.run import finetune as run
    from mmlm.ranks import joined

    try:
        with joined():
            done = run(config, folder, resume=resume, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*["--resume goes on with it"] * has_run(folder)) from error
    if is_first() and done:
        print(
            f"{folder} has the adapter. Now with an image of your own:\n\n"
            f"    {command()} caption IMAGE --model {folder}\n"
            f'    {command()} ask IMAGE "..." --model {folder}\n'
        )
    elif is_first():
        print(f"stopped, as asked; --resume goes on with {folder}", file=sys.stderr)
