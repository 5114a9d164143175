"""The command line's own verbs. Nothing heavy is imported before one runs."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from mmlm.names import RUN, check_adapter


def caption(parser: ArgumentParser) -> None:
    """Describe images."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    _add_model(parser)
    _add_ocr(parser)
    parser.set_defaults(run=run_caption)


def run_caption(args: Namespace) -> None:
    model = _open(args, args.images)
    for path in args.images:
        said = model.caption(path, max_new_tokens=args.max_new_tokens, do_sample=False)
        print(said if len(args.images) == 1 else f"{path}: {said}", flush=True)


def ask(parser: ArgumentParser) -> None:
    """Ask a question about an image."""
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask about it")
    _add_model(parser)
    _add_ocr(parser)
    parser.set_defaults(run=run_ask)


def run_ask(args: Namespace) -> None:
    if not args.question.strip():
        raise ValueError('QUESTION is empty: say what to ask, as in "what color is the shape?"')
    model = _open(args, [args.image])
    for piece in model.stream(
        args.image, model.messages(args.question), max_new_tokens=args.max_new_tokens, do_sample=False
    ):
        print(piece, end="", flush=True)
    print()


def info(parser: ArgumentParser) -> None:
    """Tell what is frozen and what is trained, how large it is, and what an image costs.

    From configs alone: no weights are read, so that the largest decoder takes seconds.
    """
    parser.add_argument(
        "model",
        nargs="?",
        default="",
        metavar="MODEL",
        help=f"saved adapter; or a decoder: hub id, folder, or gpt4-rumour (default: {RUN} if there, else the default "
        "decoder)",
    )
    parser.add_argument(
        "--vision",
        action="append",
        metavar="NAME",
        help="backbone for a decoder: timm/NAME or open_clip:MODEL; several, if repeated (default: the default one)",
    )
    parser.add_argument("--tokens", metavar="NAME", help="what embeddings are made of: square, resampler, ...")
    parser.add_argument("--every", type=count, metavar="N", help="a gated block before every N-th layer")
    parser.add_argument("--start", type=int, metavar="K", help="... from layer K on (default: 0)")
    parser.add_argument(
        "--kv-heads", type=count, metavar="N", help="key and value heads of the blocks (default: the decoder's)"
    )
    parser.set_defaults(run=run_info)


def run_info(args: Namespace) -> None:
    from mmlm import zoo
    from mmlm.info import inspect, report

    name = args.model or (RUN if Path(RUN).is_dir() else zoo.DECODER)
    names = ("vision", "tokens", "every", "start", "kv_heads")
    settings = {key: value for key in names if (value := getattr(args, key)) is not None}
    print(report(inspect(name, **settings)))


def upcycle(parser: ArgumentParser) -> None:
    """Turn a dense Llama-like decoder into an MoE with the same logits."""
    parser.add_argument("source", metavar="SRC", help="hub id or folder of the dense decoder")
    parser.add_argument("target", metavar="DST", help="folder to write, not there yet")
    parser.add_argument("--experts", type=int, default=8, help="experts of each layer (default: 8)")
    parser.add_argument("--top-k", type=int, default=2, help="experts that a token goes through (default: 2)")
    parser.set_defaults(run=run_upcycle)


def run_upcycle(args: Namespace) -> None:
    from mmlm.upcycle import upcycle_folder

    worst = upcycle_folder(args.source, args.target, args.experts, args.top_k)
    print(
        f"{args.target}: {args.experts} experts, {args.top_k} to a token; logits differ by at most {worst:.1e} in fp32"
    )


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default=RUN, metavar="RUN", help=f"saved adapter: folder or hub id (default: {RUN})")
    parser.add_argument(
        "--max-new-tokens", type=count, default=64, metavar="N", help="longest answer, in tokens (default: 64)"
    )


def _add_ocr(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ocr",
        metavar="ENGINE",
        help="read the text in the image first: rapidocr, or '' for none (default: as the adapter was saved)",
    )


def count(word: str) -> int:
    """A whole number from 1 on. ArgumentTypeError for anything else."""
    if word.isdecimal() and int(word):
        return int(word)
    raise ArgumentTypeError(f"{word!r} is no whole number from 1 on")


def _open(args: Namespace, images: list[str]):  # type: ignore[no-untyped-def]  # its type would import torch
    """The model, after a look at the images: whoever mistyped a file's name should not wait for torch."""
    from vision.images import open_image
    from vision.ocr import find_engine

    for image in images:
        open_image(image)
    check_adapter(args.model)
    if args.ocr:
        find_engine(args.ocr)
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    from mmlm.decoder import fast_device
    from mmlm.model import MultimodalLM

    hub.set_verbosity_error()  # its retries: one line says that it failed
    logging.disable_progress_bar()
    return MultimodalLM.from_pretrained(args.model, ocr=args.ocr).to(fast_device())
