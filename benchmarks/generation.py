"""How much longer a decoder takes to say as much with images as without: `python benchmarks/generation.py`.

What is timed of each contender, all in one process, in turns, each in another order:

    text     its decoder's own `generate`, nothing attached to it: the unit of the others
    idle     the same with everything attached, but no image shown
    media    with an image in each row, features ready: their projection, keys and values are computed in the time
    pixels   the same from pixels: the vision backbone runs in the time, too

Other work on the machine slows all of a turn, so the ratio of each turn counts. Every row shows another image of one
tile, seen by every token, and every gate is half open. A line of JSON for each setting, and a table at the end.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # OpenMP's waiting threads spin for some 50 us, not for ever

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from routing import draw_lots
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mmlm import zoo
from mmlm.decoder import fast_device, find_layers, load_decoder
from mmlm.experts import use_padded_experts
from mmlm.media import EYES
from mmlm.model import MultimodalLM
from mmlm.splice import Splice

GATE = 0.5  # of each gated block, before tanh

# -- decoders ---------------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
SMALL |= {"num_key_value_heads": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def small_llama() -> PreTrainedModel:
    """Dense, 50M parameters, random."""
    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=1376))


def plain_mixtral() -> PreTrainedModel:
    """16 experts of which a token takes 2, random, as transformers runs them; which ones, lots decide."""
    experts = {"num_local_experts": 16, "num_experts_per_tok": 2}
    decoder = MixtralForCausalLM(MixtralConfig(**SMALL, intermediate_size=1792, **experts))
    draw_lots(decoder)
    return decoder


def small_mixtral() -> PreTrainedModel:
    """The same; on a CPU its experts are padded, as those of a decoder that is loaded."""
    decoder = plain_mixtral()
    if fast_device().type == "cpu":
        use_padded_experts(decoder)
    return decoder


def llama_1b() -> PreTrainedModel:
    """Dense, 1.1B parameters, random: for a GPU."""
    large = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**SMALL | large, intermediate_size=8192))


def mixtral_1b() -> PreTrainedModel:
    """16 experts of which a token takes 2: 1.4B active parameters of 9.0B, random, made in bf16 where it is fast."""
    large = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8}
    experts = {"num_local_experts": 16, "num_experts_per_tok": 2}
    with fast_device():
        config = MixtralConfig(**SMALL | large, intermediate_size=5632, **experts)
        decoder = MixtralForCausalLM._from_config(config, dtype=torch.bfloat16)
    draw_lots(decoder)
    return decoder


BUILT = {"small-llama": small_llama, "small-mixtral": small_mixtral, "llama-1b": llama_1b, "mixtral-1b": mixtral_1b}


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Of 256 tokens, for decoders whose weights are random."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="!", pad_token="!")


def open_gates(model: MultimodalLM) -> None:
    """Half: nothing may be skipped."""
    for block in model.adapter.blocks:
        block.attention_gate.data.fill_(GATE)
        block.ff_gate.data.fill_(GATE)


def decoder_of(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder of `BUILT`, the default one, or what transformers loads; and a tokenizer."""
    if name in BUILT:
        torch.manual_seed(0)
        decoder = BUILT[name]()
        if dtype != "auto":
            decoder.to(getattr(torch, dtype))
        return decoder.eval(), byte_tokenizer()
    how = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    decoder, tokenizer = zoo.load_default_decoder(**how) if name == zoo.DECODER else load_decoder(name, **how)
    draw_lots(decoder)
    return decoder, tokenizer


# -- contenders -------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One model with eyes: for a number of rows, what is timed, by name; "text" is the unit of the others."""

    name: str
    blocks: int
    dtype: torch.dtype
    runs: Callable[[int], dict[str, Callable[[], Any]]]


def ours(args: argparse.Namespace) -> Contender:
    """mmlm, a block before every N-th layer."""
    decoder, tokenizer = decoder_of(args.decoder, args.dtype)
    vision = args.vision
    if vision == "random":
        vision = timm.create_model(zoo.TIMM, features_only=True)
    settings = {"every": args.every, "kv_heads": args.kv_heads}
    settings |= {} if args.ff_factor is None else {"ff_factor": args.ff_factor}
    model = MultimodalLM.from_parts(decoder, vision, tokenizer=tokenizer, **settings).to(fast_device()).eval()
    open_gates(model)

    def runs(rows: int) -> dict[str, Callable[[], Any]]:
        noise = np.random.default_rng(0)
        pictures = [Image.fromarray(noise.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(rows)]
        shown = dict(model.processor([[picture] for picture in pictures], ["x"] * rows).to(model.device))
        ids = torch.randint(100, decoder.config.vocab_size, (rows, args.prompt), generator=torch.manual_seed(0))
        text = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids, device=model.device)}
        text |= {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}
        pixels = shown | text | {"media_index": torch.zeros_like(text["input_ids"])}  # every token sees the image
        media = {key: value for key, value in pixels.items() if key not in EYES}
        media["media_values"] = model.vision(*(pixels[key] for key in EYES))

        def alone() -> None:
            model.splice.detach()
            decoder.generate(**text)
            model.splice = Splice(decoder, find_layers(decoder), model.config.layers)

        idle = partial(decoder.generate, **text)
        return {"text": alone, "idle": idle} | {
            name: partial(model.generate, **batch) for name, batch in (("media", media), ("pixels", pixels))
        }

    return Contender("mmlm", len(model.config.layers), decoder.dtype, runs)


CONTENDERS = {"mmlm": ours}

# -- the clock --------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any]) -> float:
    """How long run() takes, the device's queue empty before and after."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Median, lower and upper quartile of the seconds of "text", and of the ratio to it of the others."""
    for run in runs.values():
        run()
    order = random.Random(0)  # another one each turn, so that no contender is always timed after the same one
    turns = [{name: seconds(runs[name]) for name in order.sample(list(runs), len(runs))} for _ in range(rounds)]
    found = {"text": [turn["text"] for turn in turns]}
    found |= {name: [turn[name] / turn["text"] for turn in turns] for name in runs if name != "text"}
    return {name: spread(values) for name, values in found.items()}


def spread(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(value, 3) for value in (middle, low, high)]


def machine() -> str:
    """What it runs on, and by what versions."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {versions}"
    has = torch.cpu.get_capabilities()
    fast = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    return f"{processor()}, {torch.get_num_threads()} threads, {' '.join(fast) or platform.machine()}, {versions}"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A dict for each contender and number of rows."""
    for name in args.contenders:
        contender = CONTENDERS[name](args)
        what = {"contender": name, "decoder": args.decoder, "dtype": str(contender.dtype).removeprefix("torch.")}
        what |= {"blocks": contender.blocks, "prompt": args.prompt, "new": args.new}
        for rows in args.rows:
            yield what | {"rows": rows, **measure(contender.runs(rows), args.rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--decoder", default=zoo.DECODER, help=f"{', '.join(BUILT)}, a hub id or a folder")
    parser.add_argument("--dtype", default="auto", help="of the decoder: float32, bfloat16; auto: its own")
    parser.add_argument("--vision", default=zoo.VISION, help="as from_parts takes it; random: not pretrained")
    parser.add_argument("--every", type=int, default=2, help="a block before every N-th layer")
    parser.add_argument("--kv-heads", type=int, help="of the blocks; the decoder's own if not given")
    parser.add_argument("--ff-factor", type=float, help="of the blocks")
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine(), flush=True)
    lines = []
    for result in results(args):
        print(json.dumps(result), flush=True)
        cells = [
            f"{result[name][0]:.2f} ({result[name][1]:.2f}-{result[name][2]:.2f})"
            for name in ("idle", "media", "pixels")
        ]
        lines.append([result["contender"], result["rows"], f"{result['text'][0]:.2f} s", *cells])
    print(f"\n{args.decoder}: medians (and quartiles) of {args.rounds} turns")
    for line in [["contender", "rows", "text", "idle", "media", "pixels"], *lines]:
        print("".join(f"{cell!s:<20}" for cell in line).rstrip())


if __name__ == "__main__":
    main()
