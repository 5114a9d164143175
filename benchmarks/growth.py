"""What does a step cost as one thing grows, and does anything grow faster than it must? `python benchmarks/growth.py`.

    tiles     1 to 16 in each of 4 rows of 64 tokens, which see all; an image has up to 4
    length    of one row of text, 64 to 8,192 tokens
    experts   1 to 64, of which a token takes 2
    blocks    1 to 8, the first of them always in front of the first layer
    eval      processes of `mmlm eval caption`, of one thread each: seconds a sample, its start taken off

The first four are training steps of a Mixtral of random weights, 8 layers, 512 wide, 16 experts, a block before every
second layer: median seconds, and the peak of memory over the built model, of each point in a process of its own.

Nothing may grow faster than its floor: from the first point to any other, what is measured may grow by as many times as
the floor of `benchmarks/floors.py` does (operations or bytes moved, whichever takes longer; of memory what backward
needs and AdamW's states), and no more. What grows less has a part that stays. What grows by a fifth more is told. Of
processes the floor is the time of one, shared. Prints a line of JSON for each point; `--write` draws a plot of each
curve into docs/, and puts the table into docs/performance.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# OpenMP's waiting threads spin for some 50 us, not for ever
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import timm
import torch
from contenders import CELLS, IGNORED, MEDIA, features
from floors import Counts, Rates, rates
from generation import SMALL, byte_tokenizer, machine, open_gates, seconds
from page import DOCS, table, write
from peers import rise
from PIL import Image
from routing import draw_lots
from training import step_of
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from eval.plots import check_matplotlib
from mmlm import zoo
from mmlm.config import fit_config
from mmlm.decoder import fast_device
from mmlm.media import collate, to_device
from mmlm.model import MultimodalLM
from vision.files import whole_file

ROOT = Path(__file__).parents[1]
LAYERS, WIDE = SMALL["num_hidden_layers"], 4  # tiles of an image
FASTER = 1.2  # than its floor: is told
FULL = 3  # exit status of a point that does not fit into memory
# -- a training step --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One training step."""

    rows: int = 4
    tokens: int = 64
    tiles: int = 1
    """Of a row."""
    experts: int = 16
    blocks: int = 4
    layers: int = LAYERS

    @property
    def config(self) -> MixtralConfig:
        sizes = SMALL | {"num_hidden_layers": self.layers, "intermediate_size": 448}
        return MixtralConfig(**sizes, num_local_experts=self.experts, num_experts_per_tok=min(2, self.experts))

    @property
    def adapter(self) -> dict[str, Any]:
        """Its settings."""
        return {"layers": list(range(0, self.layers, self.layers // self.blocks)), "attend": "all"}

    @property
    def wide(self) -> int:
        """Tiles of an image."""
        return min(self.tiles, WIDE)

    @property
    def media(self) -> int:
        """Embeddings that a row shows."""
        return self.tiles * CELLS

    def model(self) -> MultimodalLM:
        """Its gates half open."""
        torch.manual_seed(0)
        eyes = {"embed_dim": MEDIA, "depth": 3, "num_heads": 8, "img_size": 512}
        vision = timm.create_model("vit_tiny_patch16_224", features_only=True, **eyes)
        decoder = MixtralForCausalLM(self.config).to(fast_device())
        draw_lots(decoder)
        model = MultimodalLM.from_parts(decoder, vision, tokenizer=byte_tokenizer(), **self.adapter).train()
        open_gates(model)
        return model

    def batch(self, model: MultimodalLM) -> dict[str, Any]:
        """Every row with images of its own; a quarter of its tokens is learnt."""
        image, each = features(model, torch.zeros(self.wide, CELLS, MEDIA)), self.tiles // self.wide
        ids = torch.randint(100, 256, (self.rows, self.tokens), generator=torch.manual_seed(0))
        rows = [list(range(row * each, (row + 1) * each)) for row in range(self.rows)]
        media = collate([image] * (self.rows * each), rows, torch.full_like(ids, each - 1), model.vision.pyramid)
        labels = ids.roll(-1, 1)
        labels[:, : -(self.tokens // 4) - 1] = labels[:, -1] = IGNORED
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **media}
        return {key: to_device(value, model.device) for key, value in batch.items()} | {"below": None}

    def measured(self, rounds: int) -> tuple[float, float]:
        """Seconds of a step, and the MiB that it takes."""
        model = self.model()
        step = step_of(model, self.batch(model))
        mib = rise(step)
        return statistics.median(seconds(step) for _ in range(rounds)), mib

    def floors(self, can: Rates) -> tuple[float, float]:
        """Those of the two."""
        adapter = fit_config(self.config, self.layers, **self.adapter)
        shape = self.rows, self.tokens, self.media, self.rows * (self.tokens // 4)
        needed = Counts.of(self.config, adapter, torch.float32)
        return sum(phase.seconds(can) for phase in needed.step(*shape)), needed.kept(*shape) / 2**20


BASE = Point()
CURVES = {
    "tiles": [replace(BASE, tiles=2**n) for n in range(5)],
    "length": [replace(BASE, rows=1, tokens=2**n) for n in range(6, 14)],
    "experts": [replace(BASE, experts=2**n) for n in range(7)],
    "blocks": [replace(BASE, blocks=2**n) for n in range(4)],
}
FIELD = {"tiles": "tiles", "length": "tokens", "experts": "experts", "blocks": "blocks"}  # of a point that grows


def alone(point: Point, rounds: int) -> tuple[float, float] | None:
    """What a point measures, in a process of its own; None if it does not fit into the machine."""
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point)), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == FULL:
        return None
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr}")
    took, mib = json.loads(done.stdout.splitlines()[-1])
    return took, mib


def available() -> int:
    """Bytes of memory that nobody needs now."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def measure_alone(point: Point, rounds: int) -> int:
    """Prints what `alone` reads; the exit status. Of a CPU's memory it takes four fifths of what is there, at most."""
    if not torch.cuda.is_available():
        most = available() * 4 // 5
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        print(json.dumps(point.measured(rounds)))
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return FULL
    return 0


# -- processes of eval ------------------------------------------------------------------------------------------------

SAMPLES = 8, 72  # of the two runs whose difference counts


def saved_model(folder: Path) -> Path:
    """A small adapter on disk, and the parts that it names."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    LlamaForCausalLM(LlamaConfig(**SMALL | {"num_hidden_layers": 4}, intermediate_size=1376)).save_pretrained(
        folder / "d"
    )
    tokenizer.save_pretrained(folder / "d")
    timm.models.save_for_hf(timm.create_model(zoo.TIMM), folder / "v", model_config={"num_classes": 1000})
    model = MultimodalLM.from_parts(str(folder / "d"), str(folder / "v"), tokenizer=None)
    open_gates(model)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def captioned(folder: Path) -> Path:
    """Pictures and captions."""
    noise = np.random.default_rng(0)
    for number in range(max(SAMPLES)):
        pixels = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{number}.jpg")
    lines = [json.dumps({"image": f"{number}.jpg", "text": f"picture {number}"}) for number in range(max(SAMPLES))]
    data = folder / "captions.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    return data


def evaluated(processes: int) -> float:
    """Seconds a sample of `mmlm eval caption` by so many processes: of the many over the few, without the start."""
    took = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, data = saved_model(folder), captioned(folder)
        for samples in SAMPLES:
            home = {"MMLM_HOME": str(folder / str(samples)), "OMP_NUM_THREADS": "1"}  # no features from the run before
            launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--", "eval"]
            words = ["--limit", str(samples), "--batch", "8", "--out", str(folder / f"run-{samples}")]
            command = [sys.executable, "-m", *launch, "caption", str(model), str(data), *words]
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, env=os.environ | home, check=True, capture_output=True)
            took.append(time.perf_counter() - started)
    return (took[1] - took[0]) / (SAMPLES[1] - SAMPLES[0])


# -- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What was measured of one thing as it grows, and its floor."""

    name: str
    unit: str
    xs: list[int]
    measured: list[float]
    floor: list[float]

    @property
    def drawn(self) -> list[float]:
        """The floor, through the first point."""
        return [self.measured[0] * floor / self.floor[0] for floor in self.floor]

    @property
    def faster(self) -> dict[int, float]:
        """How many times as much as its floor it has grown, at each point."""
        return {x: here / floor for x, here, floor in zip(self.xs, self.measured, self.drawn, strict=True)}

    @property
    def row(self) -> list[str]:
        """A line of the table."""
        at, worst = max(self.faster.items(), key=lambda pair: pair[1])
        told = f"{worst:.2f} at {at}" if worst > FASTER else "no"
        grown, must = self.measured[-1] / self.measured[0], self.floor[-1] / self.floor[0]
        ends = [self.measured[0] / self.floor[0], self.measured[-1] / self.floor[-1]]
        over = [f"{end:.1f}" for end in ends]
        return [
            f"{self.name}, {self.unit}",
            f"{self.xs[0]} to {self.xs[-1]}",
            f"{grown:.2f}",
            f"{must:.2f}",
            *over,
            told,
        ]


HEAD = ["", "of", "grows", "its floor", "over the floor: first", "last", "faster than its floor"]


def draw(curves: list[Curve], picture: Path) -> None:
    """Curves of the same thing side by side, their floors dashed."""
    check_matplotlib()
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(
        1, len(curves), figsize=(4.5 * len(curves), 3.4), layout="constrained", squeeze=False
    )
    for curve, axes in zip(curves, plots[0], strict=True):
        axes.plot(curve.xs, curve.measured, "o-", color="C0", markersize=4, label="measured")
        axes.plot(curve.xs, curve.drawn, "--", color="0.4", linewidth=1, label="floor, through the first point")
        axes.set(xscale="log", yscale="log", xlabel=curve.name, ylabel=curve.unit)
        axes.set_xticks(curve.xs, [str(x) for x in curve.xs], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=8)
    with whole_file(picture) as draft:
        figure.savefig(draft, format="png", dpi=110)
    pyplot.close(figure)


def curves_of(name: str, points: list[Point], rounds: int, can: Rates) -> list[Curve]:
    """Time and memory of training steps, up to the first that does not fit into memory."""
    found, floors = [], []
    for point in points:
        if (its_own := alone(point, rounds)) is None:
            print(json.dumps({"curve": name, **asdict(point), "seconds": None}), flush=True)
            break
        found.append(its_own)
        floors.append(point.floors(can))
        its = {"seconds": found[-1][0], "floor": floors[-1][0], "mib": found[-1][1], "mib_floor": floors[-1][1]}
        print(json.dumps({"curve": name, **asdict(point), **its}), flush=True)
    xs = [getattr(point, FIELD[name]) for point in points[: len(found)]]
    pairs = zip(("seconds a step", "MiB"), zip(*found, strict=True), zip(*floors, strict=True), strict=True)
    return [Curve(name, unit, xs, list(measured), list(floor)) for unit, measured, floor in pairs]


def curve_of_eval(most: int) -> Curve:
    """Time of a sample by processes."""
    xs = [2**n for n in range(most.bit_length())]
    found = []
    for processes in xs:
        found.append(evaluated(processes))
        print(json.dumps({"curve": "eval", "processes": processes, "seconds": found[-1]}), flush=True)
    return Curve("eval", "seconds a sample", xs, found, [found[0] / processes for processes in xs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", choices=[*CURVES, "eval"], default=[*CURVES, "eval"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="most of eval; no more than cores")
    parser.add_argument("--quick", action="store_true", help="the ends of each curve alone")
    parser.add_argument("--write", action="store_true", help="plots and table into docs/")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        sys.exit(measure_alone(Point(**args.point), args.rounds))
    print(machine(), flush=True)
    can, rows = rates(torch.float32), [HEAD]
    for name in args.curves:
        points = CURVES.get(name, [])
        points = [points[0], points[-1]] if args.quick and points else points
        curves = curves_of(name, points, args.rounds, can) if points else [curve_of_eval(args.processes)]
        rows += [curve.row for curve in curves]
        if args.write:
            draw(curves, DOCS / f"growth-{name}.png")
    print(f"\n{table(rows)}")
    if args.write:
        plots = [f"![{name}](growth-{name}.png)" for name in args.curves]
        write("growth", "\n\n".join([table(rows), *plots]))


if __name__ == "__main__":
    main()
