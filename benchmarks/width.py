"""Does a learning rate that was found on a narrow decoder hold on a wide one? A coordinate check and a sweep.

    python benchmarks/width.py                 # some minutes on a CPU; writes docs/width.png, prints the tables

Decoders are Mixtrals of random weights, of 64 to 512 channels and six layers; the eyes are a small random CNN; what is
learnt are captions of drawn shapes. With `optim.width` 64, matrices that read n times as many numbers learn at an n-th
of the rate (muP, Yang et al. 2022, arXiv:2203.03466), without it all learn at the same.

* Coordinate check: after four steps at a small rate, how large is what gated blocks add to a token, in the unit of the
  hidden states? Of all widths the same, if rates transfer.
* Sweep: the loss after some more steps, by rate, on a narrow one and one four times as wide. The best rate is the same,
  if rates transfer.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # OpenMP's waiting threads spin for some 50 us, not for ever

import timm
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from eval.plots import check_matplotlib
from finetune.batches import Batches, Mixture
from finetune.collate import Collator
from finetune.config import BatchConfig, OptimConfig, TrainConfig
from finetune.encoded import IGNORED, encode
from finetune.folder import METRICS
from finetune.loop import train
from finetune.loss import learnt_loss
from mmlm.model import MultimodalLM
from mmlm.samples import Sample
from vision.backbone import load_backbone
from vision.features import FeatureCache

WIDTHS = (64, 128, 256, 512)
SWEPT = (64, 256)
SMALL = 2.0**-11  # a rate at which four steps change little, so that what they add is in proportion to it
RATES = [2.0**power for power in range(-12, -4)]
COLORS, SHAPES = ("red", "green", "blue", "gold", "black", "pink"), ("circle", "square", "bar", "ring")
COUNT = 192  # samples, of more tokens than the widest decoder has channels


def samples() -> list[Sample]:
    """Drawn shapes and their captions: color, shape and size, and a number that nobody can see."""
    found, drawn = [], random.Random(0)
    for number in range(COUNT):
        color, shape, side = drawn.choice(COLORS), drawn.choice(SHAPES), drawn.choice((30, 50, 76))
        picture = Image.new("RGB", (96, 96), "white")
        draw = ImageDraw.Draw(picture)
        left, top = (drawn.randint(4, 92 - side) for _ in range(2))
        box = (left, top, left + side, top + (side // 4 if shape == "bar" else side))
        match shape:
            case "circle":
                draw.ellipse(box, fill=color)
            case "ring":
                draw.ellipse(box, outline=color, width=9)
            case _:
                draw.rectangle(box, fill=color)
        size = {30: "small", 50: "middling", 76: "large"}[side]
        caption = f"a {size} {color} {shape}, number {drawn.randint(100, 999)}"
        found.append(Sample.pair(str(number), (picture,), "what is it?", caption))
    return found


def made(width: int, tokenizer: PreTrainedTokenizerFast, vision: Any) -> MultimodalLM:
    """A model whose decoder is so wide, of random weights."""
    torch.manual_seed(0)
    decoder = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=6,
            num_attention_heads=width // 16,
            num_key_value_heads=width // 32,
            num_local_experts=4,
            num_experts_per_tok=2,
            initializer_range=2 * width**-0.5 / 5,
        )
    ).eval()
    return MultimodalLM.from_parts(decoder, vision, tokenizer=tokenizer, layers=[3, 4, 5])


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


class Trial:
    """Runs of the same steps on decoders of all widths."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.tokenizer = folder, byte_tokenizer()
        self.vision = load_backbone(timm.create_model("test_efficientnet", features_only=True))
        self.samples = samples()

    def run(self, width: int, lr: float, rule: bool, steps: int) -> tuple[float, float]:
        """The mean loss of the last ten steps, and how much the blocks add to a token, in units of its states."""
        model = made(width, self.tokenizer, self.vision)
        cache = FeatureCache(model.vision, self.folder / "features")
        data = encode(model, cache, self.samples, "encoding")
        rates = OptimConfig(lr=lr, gate_lr=0.0, width=WIDTHS[0] if rule else 0, warmup=0, final=1.0, weight_decay=0.0)
        batch = BatchConfig(images=8, per_image=1)
        config = TrainConfig(
            steps=steps, log_every=1, save_every=steps, calibrate=24, words=0, optim=rates, batch=batch
        )
        with tempfile.TemporaryDirectory(dir=self.folder) as run:
            train(model, cache, Mixture([Batches(data, batch, 0)], [1]), config, Path(run))
            lines = [json.loads(line) for line in Path(run, METRICS).read_text(encoding="utf-8").splitlines()]
        losses = [line["loss"] for line in lines[-10:]]
        return sum(losses) / len(losses), self.added(model.train(), Collator(model, cache)(data[:8]))

    def added(self, model: MultimodalLM, batch: dict[str, Any]) -> float:
        """The root mean square of what the gated blocks add to the learnt tokens of a batch, over its unit."""
        found = []

        def note(block: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
            learnt = (batch["labels"] != IGNORED)[:, -out.shape[1] :]
            found.append(((out - args[0])[learnt] / block.scale).detach().square().mean())

        handles = [block.register_forward_hook(note) for block in model.adapter.blocks]
        learnt_loss(model, model, batch)
        for handle in handles:
            handle.remove()
        return float(torch.stack(found).mean().sqrt())


def row(name: str, values: Iterable[Any]) -> str:
    """A line of a table."""
    return f"| {name} | {' | '.join(map(str, values))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/width.png"), help="the plot (docs/width.png)")
    parser.add_argument("--steps", type=int, default=40, help="of a run of the sweep (40)")
    args = parser.parse_args()
    check_matplotlib()
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        print(row("what blocks add after 4 steps", WIDTHS), "|---" * (len(WIDTHS) + 1) + "|", sep="\n")
        for rule, style in ((True, "-"), (False, "--")):
            name = "by width" if rule else "one rate for all"
            added = [trial.run(width, SMALL, rule, 4)[1] for width in WIDTHS]
            left.plot(WIDTHS, added, f"o{style}", label=name)
            print(row(name, [f"{value:.3f}" for value in added]))
        print("\n" + row("loss by rate", [f"{rate:.1e}" for rate in RATES]), "|---" * (len(RATES) + 1) + "|", sep="\n")
        for rule, style in ((True, "-"), (False, "--")):
            for width, color in zip(SWEPT, ("C0", "C1"), strict=True):
                if rule and width == SWEPT[0]:
                    continue  # the rate was found there: both are the same
                name = f"{width} channels" + (", by width" if rule else "")
                losses = [trial.run(width, lr, rule, args.steps)[0] for lr in RATES]
                right.plot(RATES, losses, f"o{style}", color=color, label=name)
                print(row(name, [f"{loss:.3f}" for loss in losses]))
    left.set(xscale="log", yscale="log", xlabel="width of the decoder", ylabel="what blocks add after 4 steps")
    right.set(xscale="log", yscale="log", xlabel="optim.lr", ylabel=f"loss after {args.steps} steps")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
