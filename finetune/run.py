"""A run of `mmlm finetune`: data and model as the settings say, trained, scored and saved."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import PartialState

from finetune import checkpoint
from finetune.batches import Batches, Mixture
from finetune.denoise import Denoiser
from finetune.folder import CHECKPOINTS, SURVEYS, start_folder
from finetune.loop import check_trainable, train
from finetune.reading import Reading
from finetune.run_config import DataConfig, ModelConfig, RunConfig, check_run
from finetune.score import Scorer, held_out
from finetune.shard import place
from finetune.survey import Survey, keep, kept, survey
from finetune.tensor_parallel import check_parted, parted
from mmlm import zoo
from mmlm.data import Rows
from mmlm.data.told import tell
from mmlm.model import MultimodalLM
from mmlm.ranks import main_first, main_writes, meet
from vision.features import FeatureCache

WHERE = "`mmlm data check`"  # all that is left out is named


def finetune(config: RunConfig, folder: Path, *, resume: bool = False, overwrite: bool = False) -> bool:
    """Does the whole run; False if it was asked to stop before its end. To be called in every process of it.

    The folder is left as it is until all that training needs is there.

    Args:
        resume: go on with the run in the folder.

    FileExistsError, FileNotFoundError or ValueError for a folder, data or settings that do not fit; then as `train`.
    """
    state = meet()
    with main_writes() as mine:
        if mine:
            check_run(config, folder, resume=resume, overwrite=overwrite)
    torch.manual_seed(config.seed)
    model = build(config.model)
    place(model, state.device)
    check_parted(model, config.model.tensor_parallel)
    check_trainable(model, config)
    data, tests = opened(config.data, model), opened(config.held_out, model)
    cache = FeatureCache(model.vision, zoo.home() / "features", round(config.cache_gb * 1e9))
    score = scorer(config, model, cache, tests, folder)
    found = surveyed(config, model, data, folder, resume)
    sets = [
        Batches(Reading(model, cache, rows, one.rows), config.batch, config.seed, one.facts)
        for rows, one in zip(data, found, strict=True)
    ]
    steps = config.steps or math.ceil(config.epochs * sum(map(len, sets)))
    shares = [one.weight or len(its) for one, its in zip(config.data, sets, strict=True)]
    known = model.processor.tokenizer, model.config.caption_prompt
    denoiser = Denoiser(*known, config.denoise, config.seed, config.longest) if config.denoise.share else None
    progress = train(
        model,
        cache,
        Mixture(sets, shares, denoiser),
        replace(config, steps=steps, calibrate=0 if config.model.adapter else config.calibrate),
        folder,
        seed=config.seed,
        score=score,
        score_every=config.score.every,
    )
    if progress.step < steps:
        return False
    best = config.score.take == "best"
    if best:
        checkpoint.load_step(folder, progress.best_step, model)
    weights = checkpoint.whole(model.saved())
    with main_writes() as mine:
        if mine:
            model.config.data = [one.path for one in config.data]
            scores = progress.best_scores if best else progress.scores
            model.config.scores = {name: value for name, value in scores.items() if name != "score"}
            model.save_pretrained(folder, state_dict=weights)
    return True


def build(config: ModelConfig) -> MultimodalLM:
    """The model that is to be trained. ValueError for settings that do not fit."""
    said = {name: value for name, value in asdict(config).items() if value is not None}
    adapter, settings, size = said.pop("adapter", None), said.pop("settings"), said.pop("tensor_parallel")
    decoder_kwargs = said.pop("decoder_kwargs") | parted(size)
    if adapter is None:
        try:
            return MultimodalLM.from_parts(**said, **settings, decoder_kwargs=decoder_kwargs)
        except ValueError as error:
            if size > 1 and "tp_plan" in str(error):  # transformers'
                raise ValueError(
                    f"model.tensor_parallel: {size}, and transformers cannot part {config.decoder}; leave it out"
                ) from error
            raise
    usual = asdict(ModelConfig())
    if more := {name for name, value in said.items() if value != usual[name]} | settings.keys():
        raise ValueError(
            f"model.{sorted(more)[0]}: of the saved adapter {adapter} it is what it was; leave it out, or adapter="
        )
    return MultimodalLM.from_pretrained(adapter, decoder_kwargs=decoder_kwargs)


def opened(data: Sequence[DataConfig], model: MultimodalLM) -> list[Rows]:
    """Data sets, whose captions are asked for as the model asks. The main process fetches and indexes them first."""
    return main_first(lambda: [one.open(one.path, model.config.caption_prompt) for one in data])


def surveyed(config: RunConfig, model: MultimodalLM, data: Sequence[Rows], folder: Path, resume: bool) -> list[Survey]:
    """What is in the data: the main process looks, and starts the run's folder; one that goes on knows already."""
    paths = [folder / SURVEYS / f"{number}.npz" for number in range(len(data))]
    with main_writes() as mine:
        if mine and not resume:
            found = [survey(model, rows, config.longest, f"looking at {rows.name}") for rows in data]
            start_folder(config, folder)
            for one, path in zip(found, paths, strict=True):
                keep(one, path)
            (folder / CHECKPOINTS).mkdir()  # a run is there from now on
    found = [kept(path) for path in paths]
    for rows, one in zip(data, found, strict=True):
        if len(rows) != (before := len(one.rows) + len(one.broken)):
            raise ValueError(
                f"{rows.name}: {len(rows)} rows, and {before} when the run began; put back what it was, or start over "
                "with --overwrite"
            )
        if PartialState().is_main_process:
            tell(rows.name, len(one.rows), one.broken, WHERE)
    return found


def scorer(
    config: RunConfig, model: MultimodalLM, cache: FeatureCache, tests: Sequence[Rows], folder: Path
) -> Scorer | None:
    """What scores the run; None without held-out data. ValueError if none of them can be read."""
    if not tests:
        return None
    samples, broken = main_first(lambda: held_out(model, cache, tests, config))
    if not samples:
        raise ValueError(f"held_out: not one sample can be read; the first: {broken[0]}")
    if PartialState().is_main_process:
        tell("held out", len(samples), broken, WHERE)
    return Scorer(model, cache, samples, config.score, folder)
