"""What a run tells while it goes: lines of metrics.jsonl, the progress bar, and Accelerate's trackers."""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from tqdm import tqdm

from finetune.checkpoint import Progress
from finetune.config import TrainConfig, leaves
from finetune.folder import METRICS, TROUBLE


class Metrics:
    """Tells what steps came to, as a context: in the main process alone.

    Args:
        done: steps that the run had come to; lines of later ones, from before it was stopped, are dropped.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, config: TrainConfig, done: int) -> None:
        self.folder, self.accelerator, self.config = folder, accelerator, config
        self.main = accelerator.is_main_process
        if self.main:
            keep_lines(folder / METRICS, done)
            keep_lines(folder / TROUBLE, done)
        if config.trackers:
            accelerator.init_trackers("mmlm", config={name: str(value) for name, value in leaves(config)})
        self.bar = tqdm(
            total=config.steps, initial=done, desc="fine-tuning", unit="step", smoothing=0.05, disable=not self.main
        )
        self.tokens, self.waited, self.since = 0.0, 0.0, time.perf_counter()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:  # end_training would take the processes apart, too
            tracker.finish()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which the step waits for its data."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """A block that is not of training, whose time does not count."""
        started = time.perf_counter()
        yield
        self.since += time.perf_counter() - started

    def step(self, learnt: float) -> None:
        """Notes a step that is done, and how many tokens all processes learnt from."""
        self.tokens += learnt
        self.bar.update()

    def tell(self, progress: Progress, told: dict[str, Any]) -> None:
        """Tells how far the run has come, and what is `told` of its last step."""
        seconds = time.perf_counter() - self.since
        line = {
            "step": progress.step,
            "loss_smooth": progress.smooth,
            **told,
            "learnt_tokens_per_second": self.tokens / seconds,
            "waiting": self.waited / seconds,
            "memory_gb": memory_gb(self.accelerator.device),
            "skipped": progress.skipped,
            "broken": progress.broken,
        }
        self.tokens, self.waited, self.since = 0.0, 0.0, time.perf_counter()
        self.bar.set_postfix_str(
            f"loss {progress.smooth or math.nan:.3f}, {line['learnt_tokens_per_second']:.0f} learnt tokens/s, "
            f"{line['waiting']:.0%} waiting, {line['memory_gb']:.1f} GB"
        )
        self.write(METRICS, line)

    def scored(self, step: int, found: dict[str, float]) -> None:
        """Tells what the model was worth at a step."""
        self.write(METRICS, {"step": step, **found})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))

    def left_out(self, step: int, broken: list[str]) -> None:
        """Tells which samples of a step could not be read, and says so above the bar."""
        self.write(TROUBLE, {"step": step, "broken": broken})
        self.say(f"step {step}: left out {'; '.join(broken)}")

    def distrusted(self, step: int, why: str, samples: list[str]) -> None:
        """Tells why a step was not taken, and what it held."""
        self.write(TROUBLE, {"step": step, "skipped": why, "samples": samples})
        self.say(f"step {step}: {why}; {TROUBLE} names its {len(samples)} samples")

    def say(self, line: str) -> None:
        if self.main:
            self.bar.write(line, file=sys.stderr)

    def write(self, name: str, line: dict[str, Any]) -> None:
        if self.main:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.config.trackers and name == METRICS:
            self.accelerator.log(flat(line), step=line["step"])


def trackers_of(names: str) -> list[str]:
    """The trackers that are named, with commas between. ValueError for unknown ones, and those not installed."""
    known, there = set(map(str, LoggerType.list())), set(map(str, get_available_trackers()))
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"trackers: {name!r} is none that Accelerate knows; it knows {', '.join(sorted(known))}")
        if name not in there | {"all"}:
            raise ValueError(f"trackers: {name} is not installed; pip install {name}, or leave it out")
    return wanted


def flat(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, those of inner mappings as "outer/inner"."""
    found: dict[str, float] = {}
    for name, value in line.items():
        found |= (
            {f"{name}/{key}": its for key, its in flat(value).items()} if isinstance(value, dict) else {name: value}
        )
    return found


def memory_gb(device: torch.device) -> float:
    """The most memory held so far: the device's, or this process's where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_rss_gb()


def peak_rss_gb() -> float:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes there, KiB here


def keep_lines(path: Path, done: int) -> None:
    """Drops the lines of steps after `done`, and those that a kill left half."""
    draft = path.with_name(f".{path.name}.part")
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
