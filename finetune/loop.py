"""The training loop: on one process or many, with Accelerate, the adapter learns and the frozen parts do not.

A step's samples follow from the seed and the step alone. They are parted among processes and passes, and the loss of
each part is divided by the number of learnt tokens of all: 1 process with 8 passes, 2 with 4 and 8 with 1 take the same
step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from tqdm import tqdm

from finetune import checkpoint
from finetune.attention import plain_attention
from finetune.batches import Mixture, Name
from finetune.below import Below
from finetune.calibrate import calibrate
from finetune.checkpoint import Progress
from finetune.collate import Collator
from finetune.compiled import Compiled
from finetune.config import TrainConfig
from finetune.encoded import IGNORED, Encoded
from finetune.fetch import Fetched, read
from finetune.folder import TROUBLE
from finetune.loss import learnt_loss
from finetune.metrics import Metrics, trackers_of
from finetune.optim import adamw, schedule, set_rates
from finetune.parallel import layers_are_whole, prepared
from finetune.shard import place
from finetune.stop import stopping
from finetune.tensor_parallel import agreed
from finetune.words import learn_words, speak
from finetune.zero import unparted
from mmlm.launched import sharded
from mmlm.model import MultimodalLM
from mmlm.ranks import alike, by_shares, everyone, leave_to_each, shares, total
from vision.ahead import ahead
from vision.features import FeatureCache

MOST_WORDS = 1024
MOST_IMAGES = 32  # of a batch that the adapter is prepared on
FEW = 200  # samples, of which a share that is broken says something

Score = Callable[[int], dict[str, float]]
"""What the model is worth at a step: "score", of which more is better, and what else is told. Called in every process.
"""


def train(
    model: MultimodalLM,
    cache: FeatureCache,
    mixture: Mixture,
    config: TrainConfig,
    folder: Path,
    *,
    seed: int = 0,
    score: Score | None = None,
    score_every: int = 1,
) -> Progress:
    """Trains in place what of the model is trained; goes on from the folder's last checkpoint.

    Writes metrics.jsonl and checkpoints into the folder. Returns how far it came: less than `config.steps` if SIGTERM
    asked it to stop.

    Args:
        seed: of what dropout draws.
        score: what the model is worth, asked every `score_every` steps and at the end; the best checkpoint is kept.

    ValueError for a model whose eyes are to be trained;
    FloatingPointError before a step from a loss or gradient that is not to be trusted, unless such steps are skipped;
    ValueError for more broken samples than `config.broken` allows. The last checkpoint is kept.
    """
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(kwargs_handlers=[ddp], log_with=trackers_of(config.trackers) or None, project_dir=folder)
    check_trainable(model, config)
    place(model, accelerator.device)
    (world, rank), passes = shares(model), config.batch.passes
    # what layers made of a text before is of use while they stay as they are, are not computed again in backward, and
    # need not be run in all processes at once, as sharded ones; compiled ones would be compiled for each layer's cache
    frozen = not any(name.startswith("decoder.") for name in model.trained)
    same = frozen and layers_are_whole(accelerator) and not config.recompute and not config.compile
    collate = Collator(model, cache, Below(model) if same else None)
    if config.calibrate and not checkpoint.checkpoints(folder):
        prepare(model, collate, mixture, config)
    model.adapter.to(accelerator.device)
    alike(model.adapter.state_dict().values())  # what else is trained was drawn alike in each, by the seed
    leave_to_each(model)
    if config.recompute:
        model.gradient_checkpointing_enable()
    compiled = Compiled(model) if config.compile else nullcontext
    forward, optimizer = prepared(
        accelerator, model, adamw(checkpoint.learning(model), config.optim, model.config.hidden), config.optim.clip
    )
    learning = [parameter for _, parameter in checkpoint.learning(model)]
    opening = [parameter for name, parameter in checkpoint.learning(model) if name.endswith("_gate")]
    progress = checkpoint.load(folder, model, optimizer)
    saved = progress.step
    model.train()
    with (
        Metrics(folder, accelerator, config, progress.step) as metrics,
        Fetched(mixture, passes, rank, world, config.steps) as fetched,
        stopping() as stop,
    ):
        while progress.step < config.steps:
            step = progress.step
            set_rates(optimizer, step, config.steps, config.optim)
            with metrics.waiting():
                parts = fetched.take(step)
            if team := model.decoder.tp_size:
                parts, fetched.broken = agreed(parts, fetched.broken, team)
            # what has come by now is not the same in all processes of one decoder
            batches = [collate(part, () if team else fetched.coming()) for part in parts]
            mine = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
            seen = sum(map(len, parts)) + len(fetched.broken)
            learnt, samples, broken, asked = total([mine, seen, len(fetched.broken), stop.asked], world)
            if asked:
                break
            if broken:
                metrics.left_out(step + 1, everyone(fetched.broken, world))
            progress.seen, progress.broken = progress.seen + int(samples), progress.broken + int(broken)
            check_broken(progress, config)
            loss = 0.0
            for number, batch in enumerate(batches):
                torch.manual_seed(hash((seed, step, rank * passes + number)) % 2**63)  # of dropout, where there is any
                accelerator.sync_gradients = number + 1 == passes
                alone = nullcontext() if accelerator.sync_gradients else accelerator.no_sync(forward)
                with alone, plain_attention(model, batch):
                    with compiled():
                        summed, _ = learnt_loss(forward, model, send_to_device(batch, accelerator.device))
                    accelerator.backward(summed * (world / max(learnt, 1)))  # processes' gradients become their mean
                loss += summed.item()
            (loss,) = total([loss / max(learnt, 1)], world)
            norm = float(accelerator.clip_grad_norm_(learning, config.optim.clip))
            if why := distrusted(loss, norm, progress, config):
                names = everyone([entry.id for part in parts for entry in part], world)
                metrics.distrusted(step + 1, why, names)
                if config.trouble == "stop":
                    raise FloatingPointError(
                        f"step {step + 1}: {why}, in a batch of {', '.join(names[:8])}{' ...' * (len(names) > 8)}: "
                        "look at those samples; go on with --resume and trouble: skip, or start over with a lower lr"
                    )
                progress.skipped += 1
            elif learnt:
                optimizer.step()
                progress.smooth = loss if progress.smooth is None else 0.95 * progress.smooth + 0.05 * loss
            optimizer.zero_grad()
            progress.step += 1
            metrics.step(learnt)
            if due(progress.step, config.log_every, config.steps):
                rate = config.optim.lr * schedule(step, config.steps, config.optim)
                with unparted(opening):
                    gates = model.adapter.gates()
                metrics.tell(progress, {"loss": loss, "gradient": norm, "lr": rate, "gates": gates})
            best = False
            if score and due(progress.step, score_every, config.steps):
                model.eval()
                with metrics.pausing(), unparted(learning):
                    found = score(progress.step)
                model.train()
                metrics.scored(progress.step, found)
                progress.scores = found
                if best := progress.best is None or found["score"] > progress.best:
                    progress.best_step, progress.best_scores = progress.step, found
            if best or due(progress.step, config.save_every, config.steps):
                checkpoint.save(folder, progress, model, optimizer, config.keep)
                saved = progress.step
        if saved < progress.step:
            checkpoint.save(folder, progress, model, optimizer, config.keep)
    model.eval()
    return progress


def check_trainable(model: MultimodalLM, config: TrainConfig) -> None:
    """ValueError for fewer images than parts, a model whose eyes are to be trained, and trackers that there are not."""
    (world, _), passes = shares(model), config.batch.passes
    if config.batch.images < world * passes:
        raise ValueError(
            f"batch.images: {config.batch.images} for {world} process{'es' * (world > 1)} with {passes} pass"
            f"{'es' * (passes > 1)} each, which need {world * passes} at least; raise it"
        )
    if eyes := sorted(name for name in model.trained if name.startswith("vision.")):
        raise ValueError(
            f"unfreeze={model.config.unfreeze}, lora={model.config.lora}: {eyes[0]} and {len(eyes) - 1} more would not "
            "be trained, since features of images are computed once; transformers' Trainer trains them"
        )
    trackers_of(config.trackers)


def due(step: int, every: int, steps: int) -> bool:
    """Is something that is done every so many steps, and at the end, to be done after so many?"""
    return step % every == 0 or step == steps


def check_broken(progress: Progress, config: TrainConfig) -> None:
    """ValueError if a greater share of the samples is broken than may be."""
    if progress.broken > config.broken * max(progress.seen, FEW):
        raise ValueError(
            f"{progress.broken} of {progress.seen} samples are broken, more than broken: {config.broken}; "
            f"{TROUBLE} in the run's folder names them; `mmlm data check` finds the others"
        )


def distrusted(loss: float, norm: float, progress: Progress, config: TrainConfig) -> str:
    """What is wrong with a step's loss and gradient; "" if nothing is."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"loss {loss}, gradient {norm}, which are to be finite"
    if config.spike and progress.smooth is not None and loss > config.spike * progress.smooth:
        return f"loss {loss:.3f}, more than {config.spike} times the {progress.smooth:.3f} of late"
    return ""


def prepare(model: MultimodalLM, collate: Collator, mixture: Mixture, config: TrainConfig) -> None:
    """Fits the untrained adapter to the frozen parts, and teaches it words, on parts of the first steps.

    Each process encodes a share of the images. Every one does all the rest and comes to the same, however many there
    are; of a decoder that will be sharded, the main one does it, in its own memory, and the others are given it.
    """
    parts, idle = -(-config.batch.images // MOST_IMAGES), not PartialState().is_main_process
    drawn = [
        list(mixture.part(number // parts, number % parts, parts))
        for number in range(max(config.calibrate, config.words))
    ]

    def reads(names: Sequence[Name]) -> Iterator[Encoded | str]:
        steps = tqdm(names, desc="reading", unit="sample", disable=idle)
        return ahead(partial(read, mixture), steps, alone=model.vision.alone)

    names = list(dict.fromkeys(chain.from_iterable(drawn)))
    found = dict(zip(names, by_shares(reads, names), strict=True))
    if sharded() and idle:
        return

    def samples(number: int) -> list[Encoded]:
        return [entry for name in drawn[number] if isinstance(entry := found[name], Encoded)]

    steps = tqdm(range(config.calibrate), desc="calibrating", unit="batch", disable=idle)
    reach = calibrate(model, (send_to_device(collate(samples(step)), model.device) for step in steps))
    if config.words:
        steps = tqdm(range(config.words), desc="learning words", unit="batch", disable=idle)
        ids = sorted(word for word, _ in mixture.words().most_common(MOST_WORDS))
        shown = (send_to_device(collate.shown(samples(step)), model.device) for step in steps)
        speak(model, learn_words(model, ids, shown, config.words), reach)
