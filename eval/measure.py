"""A run of `mmlm eval`: every sample asked with its images, with those of another and with none, scored and shown.

Which samples are asked together follows from the data alone, and whole batches are dealt to the processes: however many
there are, and however often they were killed, they say the same.
"""

import json
import random
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval import parts
from eval.answering import answerer
from eval.asking import Asking, prepare
from eval.best import score_best
from eval.metrics import OWN, Metrics, check_clip, metrics_for
from eval.page import write_page
from eval.parts import Batch, Part
from eval.plots import check_matplotlib
from eval.rank import with_options
from eval.scores import WAYS, Scores, score
from eval.settings import PREDICTIONS, REPORT, SCORES, SHOTS, EvalConfig, check_folder, start
from eval.shots import Chooser
from eval.tasks import QUESTION, TASKS, Task, by_image, right
from eval.together import Answer, Answerer
from mmlm import zoo
from mmlm.data import Sample
from mmlm.data.rows import SampleError
from mmlm.data.told import tell
from mmlm.model import MultimodalLM
from mmlm.ranks import main_first, main_writes, meet
from vision.features import FeatureCache
from vision.files import whole_file, write_json

PACKAGES = ("mmlm-adapter", "torch", "transformers", "open_clip_torch")


def measure(config: EvalConfig, folder: Path, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Does the whole run and returns what scores.json holds; {} in other processes than the main one.

    To be called in every process of it. The folder is left as it is until model and data are there.

    Args:
        resume: go on with the run in the folder.
        overwrite: start over the run that is there.

    FileExistsError, FileNotFoundError or ValueError for a folder, model, data or settings that do not fit.
    """
    state, task = meet(), TASKS[config.task]
    if config.best_of > 1:
        check_matplotlib()  # rather than after some hours
    with main_writes() as mine:
        if mine:
            check_folder(folder, resume=resume, overwrite=overwrite)
    model = MultimodalLM.from_pretrained(config.model).to(state.device)
    metrics, choose = metrics_for(task, config.clip), Chooser(config)
    prompt = config.prompt or (model.config.caption_prompt if task.name == "caption" else QUESTION)
    task.check_prompt(prompt)
    cache = FeatureCache(model.vision, zoo.home() / "features")
    reply = answerer(model, cache, config)
    samples, broken = read_samples(config, task, prompt, model)
    if config.clip:
        check_clip(samples)
    examples = read_examples(config, task, prompt, model, samples)
    asking, more = prepare(model, cache, samples, examples, choose)
    broken += more
    if state.is_main_process:
        tell(config.data, len(asking.samples), broken, SCORES)
    if not asking.samples:
        raise ValueError(f"{config.data}: not one sample can be asked; the first: {broken[0]}")
    settings = {
        **{name: getattr(config, name) for name in ("task", "data", "split", "subset", "limit", "seed")},
        "prompt": prompt,
        **{name: getattr(config, name) for name in ("max_new_tokens", "batch", *SHOTS)},
        **config.how,
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
    plan = asking.plan(cache, config.together)
    ask(reply, task, asking, plan, config, folder)
    found: dict[str, Any] = {}
    with main_writes() as mine:
        if mine:
            found = finish(
                config,
                task,
                metrics,
                asking,
                plan,
                folder,
                {"model": config.model, "clip": config.clip, **settings},
                broken,
            )
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
            samples.append(with_options(task.asked(one, prompt), config, model.processor.mark))
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


def read_examples(
    config: EvalConfig, task: Task, prompt: str, model: MultimodalLM, samples: Sequence[Sample]
) -> Sequence[Sample]:
    """What examples may be: the samples of the data that they are from; () if none are shown."""
    if not config.shots:
        return ()
    if (source := config.examples) == config:
        return samples
    found, broken = read_samples(source, task, prompt, model)
    if PartialState().is_main_process and (source.data, source.split) != (config.data, config.split):
        tell(f"{source.data}, of which examples are taken", len(found), broken, "`mmlm data check`")
    return found


def ask(
    reply: Answerer,
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
    part, so_far = Part(folder, state.process_index), {way: list[float]() for way in WAYS}
    mine = left[state.process_index :: state.num_processes]
    with tqdm(mine, desc="asking", unit="batch", disable=not state.is_main_process) as bar:
        for way, rows in bar:
            answers = reply(asking.together(way, rows, config.seed))
            part.add((way, rows), answers)
            if state.is_main_process:
                said = [one["said"] for one in answers]
                so_far[way] += task.so_far(said, [right(asking.samples[row]) for row in rows])
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
        lines = (json.dumps(line, ensure_ascii=False) for line in predictions(asking, answers, scores))
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    report = {
        "task": task.name,
        "main": task.main,
        "n": len(asking.samples),
        "scores": scores.table,
        "kinds": scores.kinds,
        **score_best(task, answers, asking.samples, folder),
        "broken": list(broken),
        "metrics": dict.fromkeys(scores.table, OWN) | dict(metrics.how),
        "settings": settings,
        "versions": {"python": sys.version.partition(" ")[0]} | {name: version(name) for name in PACKAGES},
    }
    write_page(folder / REPORT, report, asking.samples, said, scores, config.seed)
    write_json(folder / SCORES, report)  # the last: a run that has it is finished
    return report


def predictions(asking: Asking, answers: dict[str, list[Answer]], scores: Scores) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl."""
    return [
        {
            "id": sample.id,
            "kind": sample.kind,
            "images": [str(image) for image in sample.images if isinstance(image, str | Path)],
            "question": sample.question,
            **({"shots": [one.id for one in shots]} if shots else {}),
            "references": list(right(sample)),
            **{key(way, name): its for way in WAYS for name, its in answers[way][row].items()},
            **{key(way, "scores"): {name: its[row] for name, its in scores.each[way].items()} for way in WAYS},
        }
        for row, (sample, shots) in enumerate(zip(asking.samples, asking.shots, strict=True))
    ]


def key(way: str, what: str) -> str:
    """What an answer, or its scores, are called in predictions.jsonl: what is `said`, and `said_shuffled`."""
    return what if way == "true" else f"{what}_{way}"
