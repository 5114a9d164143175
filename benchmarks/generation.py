"""How much longer a decoder takes to say as much with an image as without: `python benchmarks/generation.py`.

Both are timed in one process, in turns, and the ratio of each turn counts, since other work on the machine slows both.
"""

import argparse
import json
import os
import platform
import statistics
import time

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from PIL import Image

from mmlm import zoo
from mmlm.decoder import fast_device
from mmlm.model import MultimodalLM


def seconds(run):
    """How long run() takes, the device's queue emptied before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def opened(model):
    """The model with every gate half open, so that nothing may be skipped."""
    with torch.no_grad():
        for block in model.adapter.blocks:
            block.attention_gate.fill_(0.5)
            block.ff_gate.fill_(0.5)
    return model


def measure(model, rows, prompt, new, rounds):
    """Medians of (seconds without media, ratio with media, ratio with media and pixels to encode)."""
    ids = torch.randint(100, 5000, (rows, prompt), generator=torch.Generator().manual_seed(0))
    picture = Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 64).convert("RGB")
    batch = model.processor([[picture]] * rows, ["x"] * rows)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shown = {**batch, **text, "media_index": torch.zeros_like(ids)}  # every token sees the image
    values = model.vision(batch["pixel_values"].to(model.device), [c.to(model.device) for c in batch["media_cells"]])
    ready = {key: value for key, value in shown.items() if key not in ("pixel_values", "media_cells")}
    ready["media_values"] = values

    def move(batch):
        return {
            k: tuple(o.to(model.device) for o in v) if isinstance(v, tuple | list) else v.to(model.device)
            for k, v in batch.items()
        }

    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    text, ready, shown = move(text), move(ready), move(shown)
    runs = [lambda b=b: model.generate(**b, **how) for b in (text, ready, shown)]
    for run in runs:
        run()
    turns = [[seconds(run) for run in runs] for _ in range(rounds)]
    base = statistics.median(turn[0] for turn in turns)
    return base, *(statistics.median(turn[i] / turn[0] for turn in turns) for i in (1, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decoder", default=zoo.DECODER, help="hub id or folder")
    parser.add_argument("--vision", default=zoo.VISION)
    parser.add_argument("--every", type=int, default=2, help="a block before every N-th layer")
    parser.add_argument("--kv-heads", type=int, help="of the blocks")
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = MultimodalLM.from_parts(args.decoder, args.vision, every=args.every, kv_heads=args.kv_heads)
    model = opened(model.to(fast_device()).eval())
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(
        f"{args.decoder}, {len(model.config.layers)} blocks, {args.prompt} + {args.new} tokens, 1 tile; {where}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for rows in args.rows:
        base, ready, whole = measure(model, rows, args.prompt, args.new, args.rounds)
        print(
            json.dumps(
                {
                    "rows": rows,
                    "text_seconds": round(base, 3),
                    "with_media": round(ready, 3),
                    "and_encoding": round(whole, 3),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
