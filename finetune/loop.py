"""The training loop: only the adapter learns, with Accelerate."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from tqdm import tqdm

from finetune import checkpoint
from finetune.calibrate import calibrate
from finetune.config import OptimConfig, TrainConfig
from finetune.folder import METRICS
from finetune.loss import learnt_loss
from finetune.words import learn_words, speak
from mmlm.model import MultimodalLM

MOST_WORDS = 1024


class Numbered(Protocol):
    """Batch number n, for any n: `Batches` or a `Mixture`."""

    def __getitem__(self, number: int) -> dict[str, Any]: ...
    def shown(self, number: int) -> dict[str, Any]: ...
    def words(self) -> Counter[int]: ...


def train(model: MultimodalLM, batches: Numbered, config: TrainConfig, folder: Path) -> None:
    """Trains the model's adapter in place, on the device that Accelerate picks; goes on from the folder's checkpoint.

    Writes metrics.jsonl (step, loss, learnt tokens per second, rates, gates) and checkpoints into the folder.
    FloatingPointError before a step from a loss or gradient that is not finite; the last checkpoint is kept.
    ValueError in one of several processes, and for a model of which more is to be trained.
    """
    check_alone()
    if more := sorted(name for name in model.trained if not name.startswith("adapter.")):
        raise ValueError(
            f"unfreeze={model.config.unfreeze}, lora={model.config.lora}: {more[0]} and {len(more) - 1} more would not "
            "be trained, since this loop trains the adapter alone for now; transformers' Trainer trains all of it"
        )
    accelerator = Accelerator()
    model.to(accelerator.device)
    optimizer = adamw(model.adapter, config.optim)
    done, smooth = checkpoint.load(folder, model.adapter, optimizer)
    if not done and config.calibrate:
        prepare(model, batches, config)
    keep_metrics(folder, done)
    forward, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    trained = [p for p in model.adapter.parameters() if p.requires_grad]
    bar = tqdm(total=config.steps, initial=done, desc="fine-tuning", unit="step", smoothing=0.05)
    tokens, since = 0, time.perf_counter()
    with bar, plain_attention(model):
        for step in range(done, config.steps):
            for group, peak in zip(optimizer.param_groups, peaks(config.optim), strict=True):
                group["lr"] = peak * schedule(step, config)
            batch = send_to_device(batches[step], accelerator.device)
            total, learnt = learnt_loss(forward, model, batch)
            loss = total / learnt
            accelerator.backward(loss)
            norm = float(accelerator.clip_grad_norm_(trained, config.optim.clip))
            now = loss.item()
            if not math.isfinite(now) or not math.isfinite(norm):
                raise FloatingPointError(
                    f"step {step}: loss {now}, gradient {norm}, which are to be finite; lower --train.optim.lr"
                )
            optimizer.step()
            optimizer.zero_grad()
            smooth = 0.95 * smooth + 0.05 * now if step else now
            tokens += learnt
            bar.update()
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                rate = tokens / (time.perf_counter() - since)
                tokens, since = 0, time.perf_counter()
                bar.set_postfix_str(f"loss {smooth:.3f}, {rate:.0f} learnt tokens/s")
                line = {
                    "step": step + 1,
                    "loss": now,
                    "loss_smooth": smooth,
                    "learnt_tokens_per_second": rate,
                    "lr": optimizer.param_groups[0]["lr"],
                    "gates": model.adapter.gates(),
                }
                with (folder / METRICS).open("a", encoding="utf-8") as metrics:
                    metrics.write(json.dumps(line) + "\n")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                checkpoint.save(folder, step + 1, smooth, model.adapter, optimizer)
    model.eval()


def prepare(model: MultimodalLM, batches: Numbered, config: TrainConfig) -> None:
    """Fits the untrained adapter to the frozen parts, and teaches it words."""
    steps = tqdm(range(config.calibrate), desc="calibrating", unit="batch")
    with plain_attention(model):  # as in training: batches may keep what the decoder made of a prefix
        reach = calibrate(model, (send_to_device(batches[step], model.device) for step in steps))
    if config.words:
        steps = tqdm(range(config.words), desc="learning words", unit="batch")
        ids = sorted(word for word, _ in batches.words().most_common(MOST_WORDS))
        shown = (send_to_device(batches.shown(step), model.device) for step in steps)
        speak(model, learn_words(model, ids, shown, config.words), reach)


def check_alone() -> None:
    """ValueError if a launcher started several processes: they would write into one folder, each its own adapter."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(f"{processes} processes were launched, but training runs in one for now; launch one")


def adamw(adapter: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over three groups: matrices, vectors (no decay), gates (no decay, a rate of their own)."""
    named = list(adapter.named_parameters())
    gates = [p for name, p in named if name.endswith("gate")]
    matrices = [p for name, p in named if p.dim() > 1]
    vectors = [p for name, p in named if p.dim() < 2 and not name.endswith("gate")]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": gates, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def peaks(config: OptimConfig) -> list[float]:
    """The peak learning rate of each of the groups of `adamw`."""
    return [config.lr, config.lr, config.gate_lr]


def schedule(step: int, config: TrainConfig) -> float:
    """The share of its peak that a rate has at a step: linear warm-up, then linear decay."""
    optim = config.optim
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    left = (config.steps - step) / max(1, config.steps - optim.warmup)
    return optim.final + (1 - optim.final) * left


@contextmanager
def plain_attention(model: MultimodalLM) -> Iterator[None]:
    """Within it, on a CPU, the decoder's attention is plain products: the fused backward is 13x slower in bf16."""
    used = model.decoder.config._attn_implementation
    if model.device.type != "cpu" or used != "sdpa":
        yield
        return
    model.decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.decoder.set_attn_implementation(used)


def keep_metrics(folder: Path, done: int) -> None:
    """Drops the lines of steps after the checkpoint that the run goes on from, and those that a kill left half."""
    path, draft = folder / METRICS, folder / f".{METRICS}.part"
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if step_of(line) <= done]
        draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(draft, path)


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity for a line that is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
