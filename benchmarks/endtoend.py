"""How long fine-tuning takes from JPEGs with captions to a saved adapter: `python benchmarks/endtoend.py`.

    mmlm           `mmlm finetune configs/finetune.yaml`, as a user calls it: from an empty feature cache, calibration,
                   words and checkpoints in the time
    mmlm_last      the same with blocks before the layers that it would choose itself, of the last third
    mllama, idefics, open_flamingo
                   the plain loop that their own training code has: workers open and resize the JPEGs in every epoch,
                   the frozen encoder is run on every batch, captions are padded to its longest, AdamW on the rest

All have the same decoder (random, fp32), tokenizer, photographs and captions of 5 to 40 words, and the same encoder
(EfficientNet-Lite0, random, fp32), of which they are given the same 85 cells of one picture of 512x512: what mmlm
has of an image at `detail: low`. Blocks stand before every second layer, and gradients are clipped at 1. JPEGs of
640x480 are drawn, and captions and tokenizer made, before the clock starts.

Each runs in a process of its own, one after another, each round in another order. A line of JSON for each tells
seconds on the wall and of processors, children's too: "whole" of the process, "train" from the first JPEG that is
opened to the adapter that is saved; and what it did: steps, images, tokens that were learnt, numbers that were trained.
"parts" of mmlm are seconds of the wall, of "features" summed over threads; its words and calibration open
photographs, too. The table at the end has each contender's time over mmlm's, by round.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import timm
import torch
from captioned import make
from contenders import CONTENDERS, EVERY, IGNORED, Peer, Work, count, idefics, mllama, open_flamingo, plain, step_of
from generation import machine, spread
from page import table, write
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from mmlm.cli import ENVIRONMENT
from vision.pyramid import Pyramid
from vision.tiles import TILE

ROOT = Path(__file__).parents[1]
PEERS: dict[str, Callable[[Work], Peer]] = {"mllama": mllama, "idefics": idefics, "open_flamingo": open_flamingo}
OURS = {"mmlm": ["--model.every", str(EVERY), "--model.start", "0"], "mmlm_last": []}
LEVELS = Pyramid().overview


# -- peers ------------------------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Photographs as the encoder takes them, and the tokens of their captions between one for the image and an end."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted((folder / "pairs").glob("*.jpg"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        path, end = self.paths[number], self.tokenizer.eos_token_id
        said = self.tokenizer(path.with_suffix(".txt").read_text(encoding="utf-8").strip()).input_ids
        image = Image.open(path).convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)
        return pixels, torch.tensor([end, *said, end])


def work_of(width: int) -> Work:
    """What peers are made for: media of so many channels."""
    return Work("llama", torch.float32, rows=8, tokens=0, tiles=1, new=0, width=width)


def batch_of(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Pixels, ids, labels, mask: padded to the longest."""
    texts = [text for _, text in samples]
    ids = pad_sequence(texts, batch_first=True)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, 0] = IGNORED
    return torch.stack([pixels for pixels, _ in samples]), ids, labels, mask


def cells(maps: dict[int, Tensor]) -> Tensor:
    """The 85 cells of mmlm's overview, of maps by depth, as media [R, 1, 85, C]; narrower ones padded with zeros."""
    width = max(its.shape[1] for its in maps.values())
    found = [torch.nn.functional.adaptive_avg_pool2d(maps[level.map], level.grid).flatten(2) for level in LEVELS]
    return torch.cat([pad(its, (0, 0, 0, width - its.shape[1])) for its in found], 2).transpose(1, 2)[:, None]


def train_peer(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop."""
    encoder = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True, features_only=True)
    widths = encoder.feature_info.channels()
    work = work_of(max(widths[level.map] for level in LEVELS))
    encoder.eval().requires_grad_(False).to(work.device, memory_format=torch.channels_last)
    peer = PEERS[name](work)
    step, told = step_of(peer), Counter[str]()
    loader = DataLoader(
        Pairs(folder),
        args.rows,
        shuffle=True,
        num_workers=args.workers,
        collate_fn=batch_of,
        generator=torch.Generator().manual_seed(0),
    )
    since = clock()
    for _ in range(args.epochs):
        for batch in loader:
            pixels, ids, labels, mask = (its.to(work.device) for its in batch)
            with torch.no_grad():
                maps = encoder(pixels.contiguous(memory_format=torch.channels_last))
                media = cells({level.map: maps[level.map] for level in LEVELS})
            loss = float(step(ids, labels, mask, media))
            told += Counter(steps=1, images=len(ids), tokens=int((labels[:, 1:] != IGNORED).sum()))
    torch.save(peer.learning, folder / f"{name}.pt")
    return {"train": passed(since), **told, "trained": count(peer.learning), "loss": round(loss, 3)}


# -- mmlm -------------------------------------------------------------------------------------------------------------


@contextmanager
def timed(spent: Counter[str], places: dict[str, tuple[Any, str]]) -> Iterator[None]:
    """Within it functions, named as (owner, name), add their seconds up."""

    def clocked(part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return timing

    before = {part: getattr(owner, name) for part, (owner, name) in places.items()}
    for part, (owner, name) in places.items():
        setattr(owner, name, clocked(part, before[part]))
    try:
        yield
    finally:
        for part, (owner, name) in places.items():
            setattr(owner, name, before[part])


def train_ours(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The command."""
    import finetune.loop
    import finetune.metrics
    import finetune.run
    import vision.features
    from finetune.checkpoint import learning
    from mmlm.cli import main as command

    told, since, spent = dict[str, Any](), list[tuple[float, float]](), Counter[str]()
    tokens, build, save, step = 0, finetune.run.build, finetune.loop.checkpoint.save, finetune.metrics.Metrics.step

    def built(*given: Any) -> Any:
        model = build(*given)
        since.append(clock())
        told["trained"] = count([its for _, its in learning(model)])
        return model

    def saved(*given: Any) -> None:
        told.update(steps=given[1].step, images=given[1].seen)
        save(*given)

    def stepped(self: Any, learnt: float) -> None:
        nonlocal tokens
        tokens += int(learnt)
        step(self, learnt)

    finetune.run.build, finetune.loop.checkpoint.save, finetune.metrics.Metrics.step = built, saved, stepped
    parts = {
        "survey": (finetune.run, "surveyed"),
        "cache_key": (vision.features, "settings_key"),
        "calibrate": (finetune.loop, "calibrate"),
        "words": (finetune.loop, "learn_words"),
        "speak": (finetune.loop, "speak"),
        "all": (finetune.run, "train"),
        "checkpoints": (finetune.loop.checkpoint, "save"),
        "open": (vision.features, "prepare"),
        "features": (vision.features.VisionEncoder, "encode_ready"),
        "read": (finetune.loop, "read"),
        "shown": (finetune.loop.Collator, "shown"),
        "batches": (finetune.loop.Collator, "__call__"),
        "waiting": (finetune.loop.Fetched, "take"),
        "forward": (finetune.loop, "learnt_loss"),
        "backward": (finetune.loop.Accelerator, "backward"),
        "clip": (finetune.loop.Accelerator, "clip_grad_norm_"),
        "optimizer": (torch.optim.AdamW, "step"),
    }
    said = [*OURS[name], "--model.detail", "low", "--epochs", str(args.epochs), "--batch.images", str(args.rows)]
    said += ["--model.decoder", str(folder / "decoder"), "--model.vision", f"local-dir:{folder / 'encoder'}"]
    with tempfile.TemporaryDirectory(dir=folder) as home:
        os.environ["MMLM_HOME"] = home  # no feature is there yet
        said += ["--data", str(folder / "pairs"), "--run", f"{home}/run"]
        with timed(spent, parts):
            if command(["finetune", str(ROOT / "configs" / "finetune.yaml"), *said]):
                raise SystemExit(1)
        lines = [json.loads(line) for line in Path(home, "run", "metrics.jsonl").read_text().splitlines()]
    return {
        "train": passed(since[0]),
        **told,
        "tokens": tokens,
        "loss": round(lines[-1]["loss"], 3),
        "parts": {part: round(seconds, 2) for part, seconds in spent.items()},
    }


# -- the clock --------------------------------------------------------------------------------------------------------


def clock() -> tuple[float, float]:
    """Seconds: of the wall, and of processors, by this process and its children that have ended."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in uses)


def passed(since: tuple[float, float]) -> list[float]:
    """What did since then."""
    return [round(now - then, 2) for now, then in zip(clock(), since, strict=True)]


def run(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One contender, in a process of its own."""
    settings = {"epochs": args.epochs, "rows": args.rows, "workers": args.workers}
    command = [sys.executable, __file__, "--alone", name, "--folder", str(folder)]
    command += [part for option, value in settings.items() for part in (f"--{option}", str(value))]
    since = clock()
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT | os.environ
    )  # all as `mmlm` sets it
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return {"contender": name, "whole": passed(since), **json.loads(done.stdout.splitlines()[-1])}


def result(rounds: list[dict[str, dict[str, Any]]]) -> str:
    """Medians (and quartiles, if there are several) of the rounds, and what was done in them, as Markdown."""
    rows = [["", "seconds", "of processors", "over mmlm", "of processors", "whole process, s", *DID]]
    for name in rounds[0]:
        ratios = [spread([its[name]["train"][i] / its["mmlm"]["train"][i] for its in rounds]) for i in (0, 1)]
        wall, processors, whole = (
            f"{spread([its[name][what][i] for its in rounds])[0]:.0f}"
            for what, i in (("train", 0), ("train", 1), ("whole", 0))
        )
        over = [f"{mid:.2f}" + f" ({low:.2f} to {high:.2f})" * (len(rounds) > 1) for mid, low, high in ratios]
        rows.append([name, wall, processors, *over, whole, *(f"{rounds[0][name][what]:,}" for what in DID)])
    return table(rows)


DID = ("steps", "images", "tokens", "trained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*OURS, *PEERS]
    parser.add_argument("--contenders", nargs="+", choices=names, default=names, help="mmlm takes part in any case")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--workers", type=int, default=1, help="that open JPEGs for the peers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where all that is given is kept; a temporary one if not given")
    parser.add_argument("--write", action="store_true", help="the table into docs/performance.md")
    parser.add_argument("--alone", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        train = train_ours if args.alone in OURS else train_peer
        print(json.dumps(train(args.alone, args.folder, args)))
        return
    print(machine(), flush=True)
    taking = []
    for name in names:
        if name in PEERS and (why := CONTENDERS[name].lacks(work_of(1))):
            print(f"{name} takes no part: {why}", file=sys.stderr)
        elif name == "mmlm" or name in args.contenders:
            taking.append(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        make(folder, args.pairs, plain(work_of(1)).cpu())
        order, rounds = random.Random(0), []
        for _ in range(args.rounds):
            found = {}
            for name in order.sample(taking, len(taking)):
                found[name] = run(name, folder, args)
                print(json.dumps(found[name]), flush=True)
            rounds.append({name: found[name] for name in taking})
    spreads = "one round" if args.rounds == 1 else f"medians of {args.rounds} rounds (and their quartiles)"
    text = f"{args.pairs} pairs, {args.epochs} epochs, batches of {args.rows}; {spreads}.\n\n{result(rounds)}"
    print(f"\n{text}")
    if args.write:
        write("finetune", text)


if __name__ == "__main__":
    main()
