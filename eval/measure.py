"""A run of `mmlm eval`: every sample asked with its images, with those of another and with none, scored and shown.

Which samples are asked together follows from the data alone, and whole batches are dealt to the processes: however many
there are, and however often they were killed, they say the same.
"""

import hashlib
import json
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval import parts
from eval.answering import Answer, Together, answerer
from eval.metrics import OWN, Metrics, metrics_for
from eval.page import write_page
from eval.parts import Batch, Part
from eval.run import alike, batches, shuffle
from eval.scores import WAYS, Scores, score
from eval.settings import PREDICTIONS, REPORT, SCORES, EvalConfig, check_folder, start
from eval.tasks import QUESTION, TASKS, Task, blind, by_image, right
from mmlm import zoo
from mmlm.data import Sample
from mmlm.data.rows import SampleError
from mmlm.data.told import tell
from mmlm.marked import Marked
from mmlm.model import MultimodalLM
from mmlm.ranks import main_first, main_writes, meet
from mmlm.samples import asked, read_images
from vision.features import FeatureCache
from vision.files import whole_file, write_json
from vision.images import ImageError, Lazy, identity

PACKAGES = ("mmlm-adapter", "torch", "transformers")
Keys = tuple[str, ...]


@dataclass
class Asking:
    """The samples of a run, and what each is asked with, by the way it is asked."""

    samples: list[Sample]
    keys: dict[str, list[Keys]]
    """Of the images that are shown."""
    texts: dict[str, list[Marked]]

    def plan(self, cache: FeatureCache, size: int) -> list[Batch]:
        """Who is asked together. Of those that are asked the very same only the first is."""
        ways = []
        for way in WAYS:
            rows, kinds = list(dict.fromkeys(self.firsts(way))), [sample.kind for sample in self.samples]
            its = batches(cache, rows, kinds, self.keys[way], self.texts[way], size)
            ways.append([(way, tuple(batch)) for batch in its])
        return [batch for group in zip_longest(*ways) for batch in group if batch]

    def firsts(self, way: str) -> list[int]:
        """For each sample the first that is asked the same."""
        return alike(self.keys[way], self.texts[way])

    def together(self, way: str, rows: Sequence[int], seed: int) -> Together:
        """A batch, as it is asked; what is drawn for it follows from the seed and from what it is of."""
        drawn = hashlib.blake2b(repr((seed, way, rows)).encode(), digest_size=4).digest()
        return Together(
            [self.samples[row] for row in rows],
            [self.keys[way][row] for row in rows],
            [self.texts[way][row] for row in rows],
            int.from_bytes(drawn),
        )

    def digest(self) -> str:
        """A hash of all that the model is shown, and of what its answers are scored against."""
        found = hashlib.blake2b(digest_size=16)
        for row, sample in enumerate(self.samples):
            shown = [[self.keys[way][row], self.texts[way][row].ids, self.texts[way][row].index] for way in WAYS]
            found.update(json.dumps([sample.id, sample.kind, right(sample), shown]).encode())
        return found.hexdigest()


def measure(config: EvalConfig, folder: Path, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Does the whole run and returns what scores.json holds; {} in other processes than the main one.

    To be called in every process of it. The folder is left as it is until model and data are there.

    Args:
        resume: go on with the run in the folder.
        overwrite: start over the run that is there.

    FileExistsError, FileNotFoundError or ValueError for a folder, model, data or settings that do not fit.
    """
    state, task = meet(), TASKS[config.task]
    with main_writes() as mine:
        if mine:
            check_folder(folder, resume=resume, overwrite=overwrite)
    model = MultimodalLM.from_pretrained(config.model).to(state.device)
    metrics = metrics_for(task, config.clip)
    prompt = config.prompt or (model.config.caption_prompt if task.name == "caption" else QUESTION)
    task.check_prompt(prompt)
    cache = FeatureCache(model.vision, zoo.home() / "features")
    samples, broken = read_samples(config, task, prompt, model)
    asking, more = prepare(model, cache, samples)
    broken += more
    if state.is_main_process:
        tell(config.data, len(asking.samples), broken, SCORES)
    if not asking.samples:
        raise ValueError(f"{config.data}: not one sample can be asked; the first: {broken[0]}")
    settings = {
        **{name: getattr(config, name) for name in ("task", "data", "split", "subset", "limit", "seed")},
        "prompt": prompt,
        **{name: getattr(config, name) for name in ("max_new_tokens", "batch", "clip")},
        "weights": model.config.weights,
        "frozen": model.config.fingerprint,
        "eyes": cache.folder.name,
        "device": state.device.type,
        "dtype": str(model.decoder.dtype).removeprefix("torch."),
        "samples": asking.digest(),
    }
    with main_writes() as mine:
        if mine:
            start(folder, settings, resume=resume)
    plan = asking.plan(cache, config.batch)
    ask(model, cache, task, asking, plan, config, folder)
    found: dict[str, Any] = {}
    with main_writes() as mine:
        if mine:
            found = finish(config, task, metrics, asking, plan, folder, {"model": config.model, **settings}, broken)
    return found


def read_samples(config: EvalConfig, task: Task, prompt: str, model: MultimodalLM) -> tuple[list[Sample], list[str]]:
    """The samples as they are asked, in the data's order; and why others are not among them."""
    rows = main_first(lambda: config.open(config.data, model.config.caption_prompt))
    captions = task.name == "caption"
    samples, broken = list[Sample](), list[str]()
    # an image's captions may be in any rows
    for number in range(len(rows)) if captions else drawn(len(rows), config):
        one = rows.tried(number)
        try:
            if isinstance(one, SampleError):
                raise one
            samples.append(task.asked(one, prompt))
        except ValueError as error:
            broken.append(rows.blame(number, error))
    if captions:
        samples = by_image(samples)
        samples = [samples[place] for place in drawn(len(samples), config)]
    return samples, broken


def drawn(count: int, config: EvalConfig) -> list[int]:
    """Which of so many are asked, in order."""
    every = range(count)
    return sorted(random.Random(config.seed).sample(every, config.limit)) if 0 < config.limit < count else list(every)


def prepare(model: MultimodalLM, cache: FeatureCache, samples: Sequence[Sample]) -> tuple[Asking, list[str]]:
    """What each sample is asked with; and why others cannot be asked."""
    known, broken, kept = encode(cache, samples), list[str](), list[Sample]()
    for sample in samples:
        errors = [error for image in sample.images if isinstance(error := known[identity(image)], ImageError)]
        if errors:
            broken.append(f"sample {sample.id!r}: {errors[0]}")
        else:
            kept.append(sample)
    state = PartialState()
    if state.num_processes > 1:  # each a share, which the others then find
        read_images(model, cache, kept[state.process_index :: state.num_processes], "reading text in images")
        state.wait_for_everyone()
    its = Asking([], {way: [] for way in WAYS}, {way: [] for way in WAYS})
    written: dict[Keys, Keys] = {}
    for sample, words in zip(kept, read_images(model, cache, kept, "reading text in images"), strict=True):
        keys = tuple(str(known[identity(image)]) for image in sample.images)
        try:
            true, without = asked(model, sample, written=words), asked(model, blind(sample))
        except ValueError as error:
            broken.append(str(error))
            continue
        its.samples.append(sample)
        its.keys["true"].append(keys)
        its.keys["blind"].append(())
        its.texts["true"].append(true)
        its.texts["blind"].append(without)
        written[keys] = words
    its.keys["shuffled"] = shuffle(its.keys["true"])
    its.texts["shuffled"] = its.texts["true"]
    if model.processor.reader is not None:
        shown = zip(its.samples, its.keys["shuffled"], strict=True)
        its.texts["shuffled"] = [asked(model, sample, written=written[keys]) for sample, keys in shown]
    return its, broken


def encode(cache: FeatureCache, samples: Sequence[Sample]) -> dict[object, str | ImageError]:
    """The key of each image in the cache, or why it has none."""
    state = PartialState()
    distinct = {identity(image): image for sample in samples for image in sample.images}
    images = list(distinct.values())

    def added(some: Sequence[Lazy]) -> Iterator[str | ImageError]:
        bar = tqdm(total=len(some), desc="encoding images", unit="image", disable=not state.is_main_process)
        with bar:
            for one in cache.add_all(some):
                bar.update()
                yield one

    if state.num_processes > 1:  # each a share, which the others then find
        deque(added(images[state.process_index :: state.num_processes]), maxlen=0)
        state.wait_for_everyone()
    return dict(zip(distinct, added(images), strict=True))


def ask(
    model: MultimodalLM,
    cache: FeatureCache,
    task: Task,
    asking: Asking,
    plan: Sequence[Batch],
    config: EvalConfig,
    folder: Path,
) -> None:
    """Asks what no process has asked before; this one its share, with the score so far on the bar."""
    state = PartialState()
    done = parts.read(folder)
    left = [batch for batch in plan if batch not in done]
    state.wait_for_everyone()  # until all have seen what is left
    reply = answerer(model, cache, config)
    part, so_far = Part(folder, state.process_index), {way: list[float]() for way in WAYS}
    mine = left[state.process_index :: state.num_processes]
    with tqdm(mine, desc="asking", unit="batch", disable=not state.is_main_process) as bar:
        for way, rows in bar:
            answers = reply(asking.together(way, rows, config.seed))
            part.add((way, rows), answers)
            said = [one["said"] for one in answers]
            now = task.metrics(said, [right(asking.samples[row]) for row in rows])[task.running]
            so_far[way] += now.each or []
            means = [f"{way} {sum(its) / len(its):.3f}" for way, its in so_far.items() if its]
            bar.set_postfix_str(f"{task.running}: {', '.join(means)}")
    part.close()
    state.wait_for_everyone()


def finish(
    config: EvalConfig,
    task: Task,
    metrics: Metrics,
    asking: Asking,
    plan: Sequence[Batch],
    folder: Path,
    settings: dict[str, Any],
    broken: Sequence[str],
) -> dict[str, Any]:
    """Scores all that was said and writes the run's files; returns what scores.json holds."""
    done = parts.read(folder)
    found: dict[str, dict[int, Answer]] = {way: {} for way in WAYS}
    for way, rows in plan:
        found[way] |= zip(rows, done[way, rows], strict=True)
    answers = {way: [its[row] for row in asking.firsts(way)] for way, its in found.items()}
    said = {way: [its["said"] for its in answers[way]] for way in WAYS}
    scores = score(metrics, said, asking.samples)
    with whole_file(folder / PREDICTIONS) as draft:
        lines = (json.dumps(line, ensure_ascii=False) for line in predictions(asking.samples, answers, scores))
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    report = {
        "task": task.name,
        "main": task.main,
        "n": len(asking.samples),
        "scores": scores.table,
        "kinds": scores.kinds,
        "broken": list(broken),
        "metrics": dict.fromkeys(scores.table, OWN) | dict(metrics.how),
        "settings": settings,
        "versions": {"python": sys.version.partition(" ")[0]} | {name: version(name) for name in PACKAGES},
    }
    write_page(folder / REPORT, report, asking.samples, said, scores, config.seed)
    write_json(folder / SCORES, report)  # the last: a run that has it is finished
    return report


def predictions(samples: Sequence[Sample], answers: dict[str, list[Answer]], scores: Scores) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl."""
    return [
        {
            "id": sample.id,
            "kind": sample.kind,
            "images": [str(image) for image in sample.images if isinstance(image, str | Path)],
            "question": sample.question,
            "references": list(right(sample)),
            **{key(way, name): its for way in WAYS for name, its in answers[way][row].items()},
            **{key(way, "scores"): {name: its[row] for name, its in scores.each[way].items()} for way in WAYS},
        }
        for row, sample in enumerate(samples)
    ]


def key(way: str, what: str) -> str:
    """What an answer, or its scores, are called in predictions.jsonl: what is `said`, and `said_shuffled`."""
    return what if way == "true" else f"{what}_{way}"
