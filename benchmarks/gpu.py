"""How much of a GPU is used? `python benchmarks/gpu.py --write`.

    peers        `benchmarks/peers.py` with decoders in bf16, in a process of its own
    training     model-FLOPs utilisation of a step as `benchmarks/training.py` has it, and of the same compiled: what
                 `benchmarks/floors.py` counts as needed over the time, over the rate of a large product in bf16
                 (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B); --peak: over what the maker says, too
    generation   new tokens a second of all rows, and what the same counts allow: nearly always the bytes that are read
    front end    tiles a second, from JPEGs of 512x512 to features, and from pictures that are opened and tiled

The decoder is a Mixtral of random weights, 16 experts of which a token takes 2, 1.4B active parameters of 9.0B. Medians
of the turns. Where there is no GPU all runs on the CPU, which takes long: choose --decoder small-mixtral, and less of
all. `--write` puts the tables into docs/performance.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# OpenMP's waiting threads spin for some 50 us, not for ever
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from encoding import encoder_of, ground
from floors import Counts, Phase, Rates, rates
from generation import BUILT, machine, seconds
from page import table, write
from training import CONTENDERS, batch_of, made, step_of

from finetune.encoded import IGNORED
from mmlm import zoo
from mmlm.model import MultimodalLM
from vision.encoder import prepare

PROMPT = 16  # tokens


def median(run: Callable[[], Any], rounds: int) -> float:
    """Seconds, once warm."""
    run()
    run()
    return statistics.median(seconds(run) for _ in range(rounds))


def floor(phases: list[Phase], can: Rates) -> float:
    return sum(phase.seconds(can) for phase in phases)


def counts(model: MultimodalLM) -> Counts:
    return Counts.of(model.decoder.config, model.config, model.decoder.dtype)


def training(model: MultimodalLM, args: argparse.Namespace, can: Rates) -> Iterator[list[str]]:
    """Rows of a table: a step, plain and compiled."""
    batch = batch_of(model, args)
    shape = args.rows, args.tokens, batch["media_gather"].shape[1], int((batch["labels"] != IGNORED).sum())
    phases = counts(model).step(*shape)
    flops = sum(phase.flops for phase in phases)
    yield ["step", "seconds", "TFLOPs needed", "MFU of a product", "MFU of the maker's peak", "over the floor"]
    for name in ("plain", "compile"):
        took = median(step_of(model, batch, CONTENDERS[name]), args.rounds)
        peak = f"{flops / took / args.peak / 1e12:.2f}" if args.peak else "-"
        over = f"{took / floor(phases, can):.2f}"
        yield [name, f"{took:.3f}", f"{flops / 1e12:.2f}", f"{flops / took / can.product:.2f}", peak, over]


def generation(model: MultimodalLM, args: argparse.Namespace, can: Rates) -> Iterator[list[str]]:
    """Rows of a table: by batch."""
    model.eval()
    yield ["batch", "tokens a second", "the floor allows", "share"]
    for rows in args.batches:
        batch = batch_of(model, argparse.Namespace(rows=rows, tokens=PROMPT))
        del batch["labels"], batch["below"]
        how = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}
        took = median(partial(model.generate, **batch, **how), args.rounds)
        least = floor(counts(model).generation(rows, PROMPT, batch["media_gather"].shape[1], args.new), can)
        made_ = rows * args.new
        yield [str(rows), f"{made_ / took:,.0f}", f"{made_ / least:,.0f}", f"{least / took:.2f}"]


def front_end(args: argparse.Namespace) -> Iterator[list[str]]:
    """Rows of a table: by backbone."""
    yield ["backbone, bf16", "tiles a second from JPEGs", "from pictures that are opened"]
    picture = ground(1024).crop((0, 0, 512, 512))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.jpg") for number in range(args.tiles)]
        for path in paths:
            picture.save(path, quality=88)
        for name in (zoo.TIMM, "resnet50"):
            encoder = encoder_of(f"timm/{name}", "bfloat16")
            ready = [prepare(path, encoder.pyramid, encoder.detail) for path in paths]
            whole = median(lambda encoder=encoder: deque(encoder.encode_all(paths), maxlen=0), args.rounds)
            alone = median(partial(encoder.encode_ready, ready), args.rounds)
            yield [name, f"{args.tiles / whole:,.0f}", f"{args.tiles / alone:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="mixtral-1b", choices=BUILT)
    parser.add_argument("--rows", type=int, default=32, help="of a step, with an image each")
    parser.add_argument("--tokens", type=int, default=512, help="of a row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="rows that are generated")
    parser.add_argument("--new", type=int, default=64, help="tokens that are generated")
    parser.add_argument("--tiles", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", type=float, help="TFLOPs a second that the maker says")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--write", action="store_true", help="the tables into docs/performance.md")
    args = parser.parse_args()
    args.dtype, args.every, args.start = "bfloat16", 4, None
    print(machine(), flush=True)
    if not args.no_peers:
        peers = [sys.executable, Path(__file__).with_name("peers.py"), "--bf16", "--memory"]
        subprocess.run([*peers, "--rounds", str(args.rounds), *["--write"] * args.write], check=True)
    torch.manual_seed(0)
    can, model = rates(torch.bfloat16), made(args)
    texts = []
    for rows in (training(model, args, can), generation(model, args, can), front_end(args)):
        texts.append(table(list(rows)))
        print(texts[-1], flush=True)
    text = "\n\n".join([*texts, f"{args.decoder}, a step of {args.rows} rows of {args.tokens} tokens."])
    if args.write:
        write("gpu", text)


if __name__ == "__main__":
    main()
