"""How much of a backbone's own speed is left from JPEGs to embeddings: `python benchmarks/encoding.py`.

    ours      the whole front end, from paths to features: `VisionEncoder.encode_all` opens, tiles, encodes and pools
    padded    the same, the backbone shown all of each picture, as in the loops; "ours" does not show padding to a CNN
    one       the same backbone in a plain loop, without gradients, a picture a call; the same pictures, opened, tiled,
              normalised, in the network's dtype and channels last before the clock starts
    batch     the same, so many pictures a call as --batch says

All in one process, in turns over so many of the images, each turn in another order. Other work on the machine slows
all of a turn, so the ratio of each turn counts: the time of the faster loop over ours, and over that of "padded". That
of processor time stands beside: what the front end costs, even where cores idle. The JPEGs are generated first, or once
into --folder: 1 to 12 megapixels, noise of every scale as in photographs with shapes drawn over it, about 0.3 bytes a
pixel, some turned by EXIF.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # OpenMP's waiting threads spin for some 50 us, not for ever
sys.path.append(str(Path(__file__).parent))

import numpy as np
import timm
import torch
from generation import machine, spread
from PIL import Image, ImageDraw

from mmlm import zoo
from mmlm.decoder import fast_device
from vision.backbone import load_backbone
from vision.encoder import VisionEncoder, prepare
from vision.images import ImageError

# -- images -----------------------------------------------------------------------------------------------------------

ASPECTS = [(4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (1, 1)]


def ground(side: int) -> Image.Image:
    """Noise of every scale, as in photographs: twice as coarse, twice as strong; and a sensor's on top."""
    draw = np.random.default_rng(0)
    field = np.zeros((side, side, 3), dtype=np.float32)
    for cells in (4, 16, 64, 256, 1024):
        noise = draw.normal(0, 110 * cells**-0.4, (cells, cells, 3)).astype(np.float32)
        for band in range(3):
            field[:, :, band] += np.asarray(Image.fromarray(noise[:, :, band]).resize((side, side), 3))
    field += draw.normal(0, 7, (side, side, 1)).astype(np.float32)
    return Image.fromarray((field + 128).clip(0, 255).astype(np.uint8))


def draw_jpegs(folder: Path, count: int, sides: tuple[int, int] | None = None) -> list[Path]:
    """`count` JPEGs, the same each time, of one size or of many; those that are there are not drawn again."""
    paths, whole = [folder / f"{number:03}.jpg" for number in range(count)], None
    for number, path in enumerate(paths):
        if path.exists():
            continue
        whole = whole or ground(2 * max(sides) if sides else 4700)
        seeded = random.Random(number)
        pixels, (across, down) = seeded.uniform(1e6, 12e6), seeded.choice(ASPECTS)
        width, height = sides or (
            round((pixels * side / other) ** 0.5) for side, other in ((across, down), (down, across))
        )
        left, top = (seeded.randrange(whole.width - min(side, whole.width) + 1) for side in (width, height))
        image = whole.crop((left, top, left + width, top + height))
        pen = ImageDraw.Draw(image)
        for _ in range(seeded.randrange(10, 60)):
            x, y, size = seeded.randrange(width), seeded.randrange(height), seeded.randrange(20, width // 6)
            colour = tuple(seeded.randrange(256) for _ in range(3))
            shape = seeded.choice([pen.ellipse, pen.rectangle])
            shape((x, y, x + size, y + size * seeded.uniform(0.3, 2)), fill=colour)
        exif = Image.Exif()
        exif[0x0112] = seeded.choice([1, 1, 1, 6, 8])
        quality, subsampling = seeded.choice([85, 88, 90]), seeded.choice(["4:2:0", "4:2:0", "4:2:2", "4:4:4"])
        image.save(path, "JPEG", quality=quality, subsampling=subsampling, exif=exif)
    return paths


# -- contenders -------------------------------------------------------------------------------------------------------


def encoder_of(name: str, dtype: str) -> VisionEncoder:
    """The default backbone, as it is, or a timm one with random weights in `dtype`."""
    if name == zoo.VISION:
        return VisionEncoder(zoo.load_default_backbone()).to(fast_device())
    torch.manual_seed(0)
    backbone = load_backbone(timm.create_model(name.removeprefix("timm/"), features_only=True))
    backbone.maps.to(getattr(torch, dtype))
    return VisionEncoder(backbone).to(fast_device())


def runs(encoder: VisionEncoder, paths: list[Path], batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed for these images, by name."""
    backbone = encoder.backbones[0]
    dtype = next(backbone.maps.parameters()).dtype
    pictures = torch.cat([prepare(path, encoder.pyramid, encoder.detail).pixels for path in paths]).to(encoder.device)
    normal = torch.empty(pictures.shape, dtype=dtype, device=encoder.device, memory_format=torch.channels_last)
    for to, picture in zip(normal, pictures, strict=True):
        to.copy_(torch.addcmul(backbone.shift.float(), picture.float(), backbone.scale.float()))

    def ours(any_size: bool = backbone.any_size) -> None:
        backbone.any_size, before = any_size, backbone.any_size
        for features in encoder.encode_all(paths):
            assert not isinstance(features, ImageError), features
        backbone.any_size = before

    @torch.no_grad()
    def loop(count: int) -> None:
        for chunk in normal.split(count):
            backbone.maps(chunk)

    return {
        "ours": ours,
        "padded": lambda: ours(any_size=False),
        "one": lambda: loop(1),
        "batch": lambda: loop(batch),
        "pictures": lambda: len(pictures),
    }


# -- the clock --------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """How long run() takes, the device's queue empty before and after; and its time of processors."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start, spent = time.perf_counter(), time.process_time()
    run()
    synchronize()
    return time.perf_counter() - start, time.process_time() - spent


def measure(encoder: VisionEncoder, paths: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Pictures, and the medians and quartiles of the turns: of their seconds a picture, and of the ratios."""
    order = random.Random(0)
    order.shuffle(paths := list(paths))
    turns, pictures = [], []
    for start in range(0, len(paths), args.turn):
        contenders = runs(encoder, paths[start : start + args.turn], args.batch)
        pictures.append(contenders.pop("pictures")())
        if not start:
            contenders["ours"]()  # to warm up
        turns.append({name: seconds(contenders[name]) for name in order.sample(list(contenders), len(contenders))})
    found: dict[str, Any] = {"pictures": sum(pictures)}
    for name in turns[0]:
        found[name] = spread([turn[name][0] / shown * 1e3 for turn, shown in zip(turns, pictures, strict=True)])
    for title, name, which in (("ratio", "ours", 0), ("padded_ratio", "padded", 0), ("processors", "ours", 1)):
        found[title] = spread([min(turn["one"][which], turn["batch"][which]) / turn[name][which] for turn in turns])
    total = {name: sum(turn[name][0] for turn in turns) for name in turns[0]}
    return found | {"whole": round(min(total["one"], total["batch"]) / total["ours"], 3)}


def results(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A dict for each backbone and dtype."""
    paths = draw_jpegs(folder, args.images)
    sizes = [path.stat().st_size / (lambda size: size[0] * size[1])(Image.open(path).size) for path in paths]
    print(f"{len(paths)} JPEGs, {statistics.median(sizes):.2f} bytes a pixel", flush=True)
    for backbone in args.backbones:
        for dtype in ["auto"] if backbone == zoo.VISION else args.dtypes:
            encoder = encoder_of(backbone, dtype)
            yield {"backbone": backbone, "dtype": dtype, **measure(encoder, paths, args)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=[zoo.VISION, "timm/resnet50"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="of all but the default backbone")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turn", type=int, default=20, help="images a turn")
    parser.add_argument("--batch", type=int, default=16, help="pictures a call")
    parser.add_argument("--folder", type=Path, help="where the JPEGs are kept; a temporary one if not given")
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for result in results(args, folder):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
