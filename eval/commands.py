"""The command line's measuring verb. Nothing heavy is imported before it runs."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from mmlm.commands import count
from mmlm.names import check_adapter


def evaluate(parser: ArgumentParser) -> None:
    """Measure what a model sees."""
    what = parser.add_subparsers(metavar="WHAT", required=True)
    zener(what.add_parser("zener", help="name the cards of a grid", description=zener.__doc__, allow_abbrev=False))


def zener(parser: ArgumentParser) -> None:
    """Ask for every card of k x k Zener cards: colored circles, crosses, waves, squares and stars."""
    parser.add_argument("model", metavar="MODEL", help="saved adapter: folder or hub id")
    parser.add_argument(
        "--k", type=sizes, default="1-13", metavar="K", help="cards on a side: 5, 1-13 or 1-3,7,13 (1-13)"
    )
    parser.add_argument("--cards", type=count, default=200, metavar="N", help="cards of each k, at least (200)")
    parser.add_argument(
        "--limit", type=count, default=0, metavar="N", help="pictures of each k, at the most (no limit)"
    )
    parser.add_argument("--seed", default="0", metavar="SEED", help="of the cards that are drawn (0)")
    parser.add_argument("--size", type=count, default=512, metavar="PIXELS", help="of a picture's side (512)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where zener.json and zener.png go (MODEL if a folder, else the current one)"
    )
    parser.set_defaults(run=run_zener)


def run_zener(args: Namespace) -> None:
    check_adapter(args.model)
    from eval.plots import check_matplotlib

    check_matplotlib()  # rather than after some minutes
    folder = Path(args.out or (args.model if Path(args.model).is_dir() else "."))
    folder.mkdir(parents=True, exist_ok=True)
    from transformers.utils import logging

    from eval.zener import table, write, zener
    from mmlm import zoo
    from mmlm.decoder import fast_device
    from mmlm.model import MultimodalLM
    from vision.features import FeatureCache

    logging.disable_progress_bar()
    model = MultimodalLM.from_pretrained(args.model).to(fast_device())
    cache = FeatureCache(model.vision, zoo.home() / "features")
    report = zener(model, cache, args.k, cards=args.cards, limit=args.limit, seed=args.seed, size=args.size)
    report = {"model": args.model, "tokens": model.config.tokens} | report
    write(report, folder)
    print(f"\n{table(report)}\n\n{folder / 'zener.json'} has more, {folder / 'zener.png'} is a plot of it.")


def sizes(word: str) -> list[int]:
    """ "1-5", "7" or "1-3,13" -> the numbers in order. ArgumentTypeError for others than those from 1 to 13."""
    from eval.cards import MOST

    try:
        ends = [
            (int(first), int(last or first)) for first, _, last in (part.partition("-") for part in word.split(","))
        ]
        if all(1 <= first <= last <= MOST for first, last in ends):
            return sorted({k for first, last in ends for k in range(first, last + 1)})
    except ValueError:
        pass
    raise ArgumentTypeError(f"{word!r} is no choice of grids: numbers from 1 to {MOST}, as 5, 1-13 or 1-3,7,13")
