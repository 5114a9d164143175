"""How much of what a machine can multiply does a training step use? `python benchmarks/training.py`.

A step is that of `mmlm finetune`: loss on the learnt tokens, backward, clipping, AdamW on the adapter; features of the
images are ready, as they are from the feature cache, and texts are new: nothing is kept of what lower layers made of
them, as it would be where they come again. Decoders have random weights. Contenders take turns in one
process, each turn in another order:

    plain      as it is by default
    compile    layers compiled (`compile: true`)
    recompute  activations computed again in backward (`recompute: true`)
    both       both

Model FLOPs are those of the plain step, counted by torch: what has no gradient has no backward, and what `recompute`
computes again is not counted. MFU is their rate over that of one large matrix product on this device in the decoder's
dtype, which is measured here, too, or over `--peak`, what the maker says (PaLM, Chowdhery et al. 2022,
arXiv:2204.02311, appendix B). A line of JSON for each contender.
"""

import argparse
import json
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # OpenMP's waiting threads spin for some 50 us, not for ever

import numpy as np
import timm
import torch
from generation import BUILT, decoder_of, machine, open_gates, seconds, spread
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from finetune.attention import plain_attention
from finetune.checkpoint import learning
from finetune.compiled import Compiled
from finetune.config import OptimConfig
from finetune.encoded import IGNORED
from finetune.loss import learnt_loss
from finetune.optim import adamw
from mmlm import zoo
from mmlm.decoder import fast_device
from mmlm.media import EYES
from mmlm.model import MultimodalLM

CONTENDERS = {"plain": (), "compile": ("compile",), "recompute": ("recompute",), "both": ("compile", "recompute")}


def made(args: argparse.Namespace) -> MultimodalLM:
    """The model, its gates half open."""
    decoder, tokenizer = decoder_of(args.decoder, args.dtype)
    vision = timm.create_model(zoo.TIMM, features_only=True)
    model = MultimodalLM.from_parts(decoder, vision, tokenizer=tokenizer, every=args.every, start=args.start)
    open_gates(model)
    return model.to(fast_device()).train()


def batch_of(model: MultimodalLM, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of text, each with an image of one tile, of which the second half is learnt."""
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(args.rows)]
    batch = dict(model.processor([[picture] for picture in pictures], ["x"] * args.rows).to(model.device))
    values = model.vision(*(batch.pop(key) for key in EYES))
    ids = torch.randint(100, len(model.processor.tokenizer), (args.rows, args.tokens), device=model.device)
    labels = ids.roll(-1, 1)
    labels[:, : args.tokens // 2] = labels[:, -1] = IGNORED
    batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "media_index": torch.zeros_like(ids)}
    return batch | {"media_values": values, "labels": labels, "below": None}


def step_of(model: MultimodalLM, batch: dict[str, Any], kinds: tuple[str, ...] = ()) -> Callable[[], Any]:
    """One step of one contender, whose first call compiles."""
    rates = OptimConfig()
    optimizer = adamw(learning(model), rates)
    parameters = [parameter for _, parameter in learning(model)]
    if "recompute" in kinds:
        model.gradient_checkpointing_enable()
    compiled = Compiled(model) if "compile" in kinds else nullcontext
    model.gradient_checkpointing_disable()

    def step() -> None:
        if "recompute" in kinds:
            model.gradient_checkpointing_enable()
        with plain_attention(model, batch):
            with compiled():
                loss, learnt = learnt_loss(model, model, batch)
            (loss / learnt).backward()
        torch.nn.utils.clip_grad_norm_(parameters, rates.clip)
        optimizer.step()
        optimizer.zero_grad()
        model.gradient_checkpointing_disable()

    return step


def counted(step: Callable[[], Any]) -> int:
    """Floating-point operations of the step's products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def product_rate(dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product: the best of a few."""
    device = fast_device()
    size = 8192 if device.type != "cpu" else 2048
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(partial(torch.mm, one, other)) for _ in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--decoder", default="small-llama", help=f"{', '.join(BUILT)}, a hub id or a folder")
    parser.add_argument("--dtype", default="bfloat16", help="of the decoder: float32, bfloat16; auto: its own")
    parser.add_argument("--every", type=int, default=4, help="a block before every N-th layer")
    parser.add_argument("--start", type=int, help="the first layer that has one; below it there is no backward")
    parser.add_argument("--rows", type=int, default=8, help="of text, with an image each")
    parser.add_argument("--tokens", type=int, default=128, help="of a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", type=float, help="TFLOPs a second that the maker says")
    args = parser.parse_args()
    print(machine(), flush=True)
    torch.manual_seed(0)
    model = made(args)
    rate = product_rate(model.decoder.dtype)
    batch = batch_of(model, args)
    steps = {name: step_of(model, batch, CONTENDERS[name]) for name in args.contenders}
    flops = counted(step_of(model, batch))
    for step in steps.values():
        step()
    order = random.Random(0)
    turns = [{name: seconds(steps[name]) for name in order.sample(list(steps), len(steps))} for _ in range(args.rounds)]
    what = {
        "decoder": args.decoder,
        "parameters": sum(p.numel() for p in model.decoder.parameters()),
        "trained": sum(p.numel() for _, p in learning(model)),
        "dtype": str(model.decoder.dtype).removeprefix("torch."),
        "rows": args.rows,
        "tokens": args.tokens,
        "gflops": round(flops / 1e9, 1),
        "product_tflops": round(rate / 1e12, 2),
    }
    for name in steps:
        middle = spread([turn[name] for turn in turns])
        found = {"contender": name, "seconds": middle, "mfu_of_product": round(flops / middle[0] / rate, 3)}
        if args.peak:
            found["mfu"] = round(flops / middle[0] / (args.peak * 1e12), 3)
        if "plain" in steps:
            found["over_plain"] = spread([turn[name] / turn["plain"] for turn in turns])
        print(json.dumps(what | found), flush=True)


if __name__ == "__main__":
    main()
