"""The optimizer: AdamW over groups whose rates have rules of their own, and a schedule that the step alone decides."""

from collections.abc import Iterable

import torch
from torch import Tensor

from finetune.config import OptimConfig


def adamw(named: Iterable[tuple[str, Tensor]], config: OptimConfig, width: int = 0) -> torch.optim.AdamW:
    """AdamW over matrices, vectors (no decay) and gates (no decay, a rate of their own).

    Each group has its peak rate as `peak`. Matrices that read the decoder's states, or as many numbers as it is wide,
    have one of their own where `config.width` says on which width the rate was found.

    Args:
        width: of the decoder.
    """
    groups: dict[str, list[Tensor]] = {"wide": [], "matrix": [], "vector": [], "gate": []}
    for name, parameter in named:
        groups[kind_of(name, parameter)].append(parameter)
    narrower = config.width / width if config.width and width else 1.0
    peaks = {"wide": config.lr * narrower, "matrix": config.lr, "vector": config.lr, "gate": config.gate_lr}
    decays = {"wide": config.weight_decay, "matrix": config.weight_decay, "vector": 0.0, "gate": 0.0}
    return torch.optim.AdamW(
        [
            {"params": params, "lr": peaks[kind], "peak": peaks[kind], "weight_decay": decays[kind]}
            for kind, params in groups.items()
            if params
        ],
        betas=(0.9, config.beta2),
        fused=True,
    )


def kind_of(name: str, parameter: Tensor) -> str:
    """The group of a parameter: "wide" are matrices whose inputs grow with the decoder's width."""
    if name.endswith("_gate"):
        return "gate"
    if parameter.dim() < 2:
        return "vector"
    reads = name.endswith(".weight")  # and is no table
    return "wide" if reads and (".blocks." in name or ".resampler." in name) else "matrix"


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Gives every group the rate that it has at a step of a run of so many."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * schedule(step, steps, config)


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """The share of its peak that a rate has at a step: linear warm-up, then linear decay."""
    warmup = min(config.warmup, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return config.final + (1 - config.final) * left
