"""The command line's measuring verb. Nothing heavy is imported before it runs."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from mmlm.commands import count
from mmlm.data.commands import SOURCE, add_source
from mmlm.names import check_adapter

UNGROUNDED = 3  # exit status


def evaluate(parser: ArgumentParser) -> None:
    """Measure what a model sees."""
    what = parser.add_subparsers(metavar="WHAT", required=True)
    for verb, line in (
        (caption, "score captions of a data set's images"),
        (vqa, "score answers to a data set's questions"),
        (compare, "set two runs of the same data side by side"),
        (zener, "name the cards of a grid"),
    ):
        verb(what.add_parser(verb.__name__, help=line, description=verb.__doc__, allow_abbrev=False))


def caption(parser: ArgumentParser) -> None:
    """Caption every image of a data set, with CIDEr, BLEU and ROUGE-L; also with shuffled images, and with none.

    Captions of the same image are its references. METEOR and SPICE are scored where pycocoevalcap and Java are.
    """
    _add_run(parser, "caption", "what asks for a caption (as the adapter was trained)")
    parser.add_argument(
        "--clip", metavar="NAME", help="score by CLIPScore, too: open_clip:MODEL/TAG, TAG may be a path"
    )


def vqa(parser: ArgumentParser) -> None:
    """Answer every question of a data set, with the official accuracy; also with shuffled images, and with none."""
    usual = "('{question}'; of data by name what is usual)"
    _add_run(parser, "vqa", f"what stands around a question, as '{{question}} Answer briefly.' {usual}")
    parser.set_defaults(clip=None)


def _add_run(parser: ArgumentParser, task: str, prompt: str) -> None:
    parser.add_argument("model", metavar="MODEL", help="saved adapter: folder or hub id")
    parser.add_argument("data", metavar="DATA", help=SOURCE)
    parser.add_argument("--split", metavar="NAME", help="of DATA (of data by name the one that is usually scored)")
    add_source(parser, prompt)
    parser.add_argument("--limit", type=count, default=0, metavar="N", help="samples, drawn by --seed (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")
    parser.add_argument("--max-new-tokens", type=count, default=32, metavar="N", help="longest answer, in tokens (32)")
    parser.add_argument("--batch", type=count, default=96, metavar="N", help="samples that are asked together (96)")
    add_shots(parser)
    _add_answering(parser)
    parser.add_argument("--out", metavar="FOLDER", help=f"where the run is kept (runs/eval/{task}-MODEL-DATA)")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument("--overwrite", action="store_true", help="start the run that is there over")
    parser.add_argument(
        "--require-grounded",
        action="store_true",
        help="exit with 3 unless the images gain something over shuffled ones, and over none",
    )
    parser.set_defaults(run=run_task, task=task)


def _add_answering(parser: ArgumentParser) -> None:
    """How samples are answered, if not greedily."""
    parser.add_argument(
        "--best-of", type=count, default=1, metavar="N", help="draw N answers and take the best (1: the greedy one)"
    )
    parser.add_argument(
        "--verifier",
        default="self",
        metavar="NAME",
        help="what scores them: self (mean log-probability) or open_clip:MODEL/TAG, where TAG may be a path (self)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of what is drawn (1)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="share that is drawn from (1)")
    parser.add_argument(
        "--rank",
        nargs="?",
        const="mean",
        choices=("mean", "sum"),
        help="say nothing, rank each sample's options by log-likelihood: mean over tokens, or sum (mean)",
    )
    parser.add_argument(
        "--choices", type=options, default=(), metavar="A,B,...", help="options of samples that have none of their own"
    )


def add_shots(parser: ArgumentParser) -> None:
    """The options of few-shot."""
    parser.add_argument(
        "--shots", type=amount, default=0, metavar="N", help="examples that are shown before each sample (0)"
    )
    parser.add_argument("--shots-from", metavar="DATA", help=f"that they are taken from (DATA itself): {SOURCE}")
    parser.add_argument("--shots-split", metavar="NAME", help="of that data (of data by name the one to train on)")
    parser.add_argument(
        "--shots-by",
        default="random",
        metavar="HOW",
        help="random, similar (to the model's own eyes) or open_clip:MODEL/TAG (random)",
    )


def amount(word: str) -> int:
    """A whole number from 0 on. ArgumentTypeError for anything else."""
    if word.isdecimal():
        return int(word)
    raise ArgumentTypeError(f"{word!r} is no whole number from 0 on")


def run_task(args: Namespace) -> int:
    from dataclasses import fields

    from eval.settings import EvalConfig, check_folder
    from mmlm.launched import is_first

    config = EvalConfig(**{field.name: getattr(args, field.name) for field in fields(EvalConfig)})
    folder = Path(args.out or config.folder)
    if is_first():  # before torch is loaded
        check_folder(folder, resume=args.resume, overwrite=args.overwrite)
    check_adapter(args.model)
    from transformers.utils import logging

    from eval.measure import measure
    from eval.page import summary
    from eval.scores import ungrounded
    from mmlm.ranks import joined

    logging.disable_progress_bar()
    try:
        with joined():
            report = measure(config, folder, resume=args.resume, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("--resume goes on with it") from error
    if not report:
        return 0
    print(f"\n{summary(report)}\n\n{folder} has report.html, scores.json and predictions.jsonl.")
    if args.require_grounded and (why := ungrounded(report)):
        print(f"mmlm: {why}", file=sys.stderr)
        return UNGROUNDED
    return 0


def options(word: str) -> tuple[str, ...]:
    """ "red, green" -> both."""
    return tuple(one.strip() for one in word.split(","))


def compare(parser: ArgumentParser) -> None:
    """Tell what run B gains over run A, of the same data: each score's difference, paired, and what flipped."""
    parser.add_argument("a", metavar="A", help="a finished run's folder")
    parser.add_argument("b", metavar="B", help="another's")
    parser.add_argument("--out", metavar="FILE", help="where the page with both answers goes (compare.html in B)")
    parser.set_defaults(run=run_compare)


def run_compare(args: Namespace) -> None:
    from eval.versus import PAGE, compare, read_run, summary, write_page

    found = compare(read_run(Path(args.a)), read_run(Path(args.b)))
    path = Path(args.out or Path(args.b, PAGE))
    write_page(path, found)
    print(f"{summary(found)}\n\n{path} has both answers side by side.")


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
