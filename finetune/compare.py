"""Token configurations compared on the Zener test: the same pictures, steps and seed for each.

`probe` asks the embeddings themselves, in minutes; `tune` trains an adapter of a decoder for each and asks that. Both
give a report whose `tokens` has the scores by configuration.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.cards import Cards
from eval.commands import sizes
from eval.run import shuffle
from eval.zener import decks, sample_of, score, write, zener
from finetune.batches import Batches, Mixture
from finetune.checkpoint import checkpoints
from finetune.config import check_resumable
from finetune.encoded import Encoded
from finetune.folder import LOSS, METRICS, check_folder, has_run, start_folder
from finetune.loop import train
from finetune.plots import plot_loss
from finetune.probe import Shown, tell, train_probe
from finetune.zener_config import ProbeConfig, TuneConfig, ZenerConfig
from mmlm import zoo
from mmlm.config import AdapterConfig
from mmlm.model import MultimodalLM
from mmlm.parts import backbones_of
from mmlm.ranks import check_alone
from mmlm.samples import asked
from vision.ahead import ahead
from vision.backbone import Backbone
from vision.encoder import VisionEncoder
from vision.features import FeatureCache
from vision.files import write_json

TRAIN, TEST = "train", "test"  # what the seeds of pictures begin with
DATA = ["Zener cards"]  # for the model card
DONE = "tuned.json"  # of what is finished; `mmlm eval zener` writes a zener.json of its own there


def probe(config: ZenerConfig) -> dict[str, Any]:
    """Trains a probe on the embeddings of each token configuration, and scores it on other pictures."""
    ks, (backbone,) = sizes(config.k), backbones_of(config.vision)
    settings = {name: probe_config(name, backbone, config.probe) for name in config.tokens}
    caches = {name: cache_of(its, backbone) for name, its in settings.items()}
    known = [Cards(k, number, f"{TRAIN} {config.seed}") for k in ks for number in range(config.probe.pictures)]
    tests = {k: decks(k, config.cards, seed=f"{TEST} {config.seed}") for k in ks}
    started = time.perf_counter()
    every = [*known, *(deck for its in tests.values() for deck in its)]
    keys_of = dict(zip(caches, encode_decks(list(caches.values()), backbone, every), strict=True))
    encoded = time.perf_counter() - started
    results = {}
    for name, cache in caches.items():
        keys = keys_of[name]
        shown = [Shown(deck, keys[deck]) for deck in known]
        trained, seconds = train_probe(settings[name], cache, shown, config.probe, config.seed, name)
        scores = {}
        for k, its in tests.items():
            own = [(keys[deck],) for deck in its]
            said, other = (
                tell(trained, cache, [Shown(deck, key) for deck, (key,) in zip(its, each, strict=True)])
                for each in (own, shuffle(own))
            )
            scores[str(k)] = score(its, said, other)
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        results[name] = {"parameters": parameters, "seconds": {"train": round(seconds, 1)}, "k": scores}
    return {"config": asdict(config), "seconds": {"encode": round(encoded, 1)}, "tokens": results}


def tune(config: ZenerConfig, folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains an adapter of the decoder for each token configuration, and scores it.

    Each has a folder of its own in `folder`, with all that a run has. What is finished there is not done again, what
    was stopped goes on from its last checkpoint, unless it is to be overwritten. ValueError if settings are others.
    """
    check_alone()
    for name in config.tokens:
        run, own = folder / name, replace(config, tokens=[name], probe=ProbeConfig())
        resume = has_run(run) and not overwrite
        check_folder(run, resume=resume, overwrite=overwrite)
        if resume:
            check_resumable(own, run)
        else:
            start_folder(own, run)
            (run / DONE).unlink(missing_ok=True)
    (backbone,), results = backbones_of(config.vision), {}
    for name in config.tokens:
        run = folder / name
        if not (run / DONE).exists():
            report = tune_one(config, name, backbone, run)
            write(report, run)
            write_json(run / DONE, report)
        results[name] = json.loads((run / DONE).read_text(encoding="utf-8"))
    return {"config": asdict(config), "tokens": results}


def tune_one(config: ZenerConfig, name: str, backbone: Backbone, run: Path) -> dict[str, Any]:
    """One configuration, trained in the folder `run` and scored: what its tuned.json holds."""
    ks, resumed = sizes(config.k), bool(checkpoints(run))
    torch.manual_seed(config.seed)
    model = MultimodalLM.from_parts(
        config.decoder,
        backbone,
        tokens=name,
        start=config.tune.blocks_from,
        every=1,
        heads=config.tune.heads or None,
        kv_heads=config.tune.kv_heads or None,
        ff_factor=3.0,
        system="",
        image_last=True,
        data=DATA,
    )
    cache = FeatureCache(model.vision, zoo.home() / "features")
    lessons = curriculum(ks, config.tune)
    known = {
        k: [Cards(k, number, f"{TRAIN} {config.seed}") for number in range(its.pictures)] for k, its in lessons.items()
    }
    started = time.perf_counter()
    (keys,) = encode_decks([cache], backbone, [deck for its in known.values() for deck in its])
    encoded = time.perf_counter()
    parts = [
        Batches(
            [encoded_of(model, cache, deck, keys[deck]) for deck in known[k]],
            replace(config.tune.train.batch, images=its.images),
            config.seed,
        )
        for k, its in lessons.items()
    ]
    mixture = Mixture(parts, [its.share for its in lessons.values()])
    if train(model, cache, mixture, config.tune.train, run).step < config.tune.train.steps:
        raise KeyboardInterrupt("the same command goes on with it")  # SIGTERM, after which a checkpoint was saved
    model.save_pretrained(run)
    plot_loss(run / METRICS, run / LOSS)
    trained = time.perf_counter()
    report = zener(model, cache, ks, cards=config.cards, seed=f"{TEST} {config.seed}")
    spent = {"encode": encoded - started, "train": trained - encoded, "eval": report["seconds"]}
    return report | {
        "model": str(run),
        "tokens": name,
        "parameters": model.num_parameters(only_trainable=True),
        "lessons": {str(k): asdict(its) for k, its in lessons.items()},
        "seconds": {what: round(seconds, 1) for what, seconds in spent.items()},
        "resumed": resumed,
    }


@dataclass(frozen=True)
class Lesson:
    """What is trained of one k."""

    pictures: int
    """Different ones."""
    images: int
    """Of them in a batch."""
    share: float
    """Of the batches."""


def curriculum(ks: Sequence[int], settings: TuneConfig) -> dict[int, Lesson]:
    """What is trained of each k: k has a share of the steps in proportion to k to the power of -favor.

    Grids of all sizes come by turns from the first step to the last. A batch has about `cards` cards whatever the k, so
    that it costs about the same; small grids, from which color and symbol are learnt, come more often than large ones,
    which teach places.
    """
    weights = {k: k**-settings.favor for k in ks}
    lessons = {}
    for k, weight in weights.items():
        share = weight / sum(weights.values())
        images = min(settings.train.batch.images, max(1, round(settings.cards / k**2)))
        pictures = max(images, ceil(settings.train.steps * share * images / settings.repeats))
        lessons[k] = Lesson(pictures, images, share)
    return lessons


def encoded_of(model: MultimodalLM, cache: FeatureCache, deck: Cards, key: str) -> Encoded:
    """A picture of cards, its features in the cache, ready to be batched."""
    sample = sample_of(deck)
    return Encoded(
        sample.id, sample.question, sample.answer, (key,), asked(model, sample, answered=True), cache.size(key)
    )


def probe_config(tokens: str, backbone: Backbone, settings: ProbeConfig) -> AdapterConfig:
    """Of the adapter that a probe is made of."""
    its = AdapterConfig(
        vision=backbone.name,
        tokens=tokens,
        layers=list(range(settings.blocks)),
        hidden=settings.width,
        heads=settings.heads,
        kv_heads=settings.heads,
        head_dim=settings.width // settings.heads,
        media_dim=settings.width,
    )
    its.channels = VisionEncoder(backbone, its.pyramid, its.detail).channels
    return its


def cache_of(config: AdapterConfig, backbone: Backbone) -> FeatureCache:
    """Where features of a configuration's eyes are kept."""
    return FeatureCache(VisionEncoder(backbone, config.pyramid, config.detail), zoo.home() / "features")


def encode_decks(caches: Sequence[FeatureCache], backbone: Backbone, decks: Sequence[Cards]) -> list[dict[Cards, str]]:
    """For each cache the keys of the pictures in it. All have the backbone, which sees each picture once for them."""

    def add(deck: Cards) -> list[str]:
        picture = deck()
        return [cache.add(picture) for cache in caches]

    with seen_once(backbone):
        added = ahead(add, decks, alone=caches[0].encoder.alone)
        keys = list(tqdm(added, total=len(decks), desc="drawing and encoding", unit="picture"))
    return [dict(zip(decks, its, strict=True)) for its in zip(*keys, strict=True)]


@contextmanager
def seen_once(backbone: Backbone) -> Iterator[None]:
    """Within it, in each thread, pictures that the backbone saw last are not computed again."""
    last, own = threading.local(), backbone.forward

    def forward(pictures: Tensor, depths: Sequence[int] | None = None) -> list[Tensor]:
        if not torch.equal(getattr(last, "pictures", torch.empty(0)), pictures):
            last.pictures, last.maps = pictures, own(pictures)
        maps: list[Tensor] = last.maps
        return maps if depths is None else [maps[depth] for depth in depths]

    backbone.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.forward
