"""Optimizer (ZeRO-1), gradients (2) and weights (3) parted among processes by DeepSpeed (arXiv:1910.02054).

DeepSpeed's engine is given our AdamW and our batches, and asked for less than it would do: passes are counted by the
loop, which also decides about each step once it has seen the gradient.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from torch import Tensor, nn

from mmlm.model import MultimodalLM
from mmlm.ranks import total

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def part(
    accelerator: Accelerator, model: MultimodalLM, optimizer: torch.optim.AdamW, clip: float
) -> tuple[nn.Module, "Optimizer"]:
    """What `accelerator.prepare` gives for a model and its optimizer, parted as Accelerate's DeepSpeed plugin says.

    `accelerator.backward` and `clip_grad_norm_` then do what they do without DeepSpeed, and no more.

    ValueError for what is trained in 16 bits.
    """
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if odd := {parameter.dtype for parameter in learning} - {torch.float32}:
        raise ValueError(f"unfreeze: {odd.pop()}, and with DeepSpeed torch.float32 alone is trained: take ddp.yaml")
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings |= {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": clip}
    engine, _ = accelerator.prepare(Blind(model), optimizer)
    accelerator.deepspeed_engine_wrapped = Engine(engine, learning)
    return engine, Optimizer(engine, learning)


class Blind(nn.Module):
    """The model without its eyes, which look at other images in each process and so stay whole."""

    def __init__(self, model: MultimodalLM) -> None:
        super().__init__()
        self.decoder, self.adapter, self.whole = model.decoder, model.adapter, [model]  # in a list it is no part of it

    def forward(self, **batch: Any) -> Any:
        return self.whole[0](**batch)


class Engine(DeepSpeedEngineWrapper):
    """The engine as Accelerate calls it, without the step that is otherwise taken in backward."""

    def __init__(self, engine: Any, learning: list[nn.Parameter]) -> None:
        super().__init__(engine)
        self.learning = learning

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """The last backward of a step is one with `sync_gradients`."""
        self.engine.set_gradient_accumulation_boundary(sync_gradients)
        self.engine.backward(loss)

    def get_global_grad_norm(self) -> float:
        """Of the gradient that a step would take, before it is clipped."""
        if self.engine.zero_optimization_stage() < 3:
            return float(self.engine.optimizer.scaled_global_norm())
        from deepspeed.utils import safe_get_local_grad

        norms = torch.stack([torch.linalg.vector_norm(safe_get_local_grad(parameter)) for parameter in self.learning])
        return math.sqrt(total([float(norms.square().sum())], PartialState().num_processes)[0])


class Optimizer(DeepSpeedOptimizerWrapper):
    """The parted optimizer as the loop and checkpoints know one: steps are taken or left out, `state` is by parameter.

    Clips by the norm of the whole gradient, as `torch.nn.utils.clip_grad_norm_` does.
    """

    def __init__(self, engine: Any, learning: list[nn.Parameter]) -> None:
        super().__init__(engine.optimizer)
        self.engine, self.learning, self.taken = engine, learning, False
        self.moments = Moments(engine.optimizer)

    @property
    def state(self) -> "Moments":
        """What is remembered of each parameter."""
        return self.moments

    def step(self) -> None:
        self.engine.step()
        self.taken = True

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Forgets the gradient, be it that no step was taken.

        DeepSpeed leaves a step out, and all that it has gathered for it, where the gradient is no number: it is made
        none.
        """
        if not self.taken:
            spoil(self.learning[0])
            self.engine.step()
        self.taken = False

    def refresh(self) -> None:
        """Takes notice of weights that were put into the model."""
        self.optimizer.refresh_fp32_params()


class Moments:
    """The state of an AdamW whose parameters lie in flat tensors, parted: by the model's parameters, each as a whole.

    To be asked and filled in every process.
    """

    def __init__(self, optimizer: Any) -> None:
        self.flat = optimizer.optimizer.state
        if parted := hasattr(optimizer, "fp32_partitioned_groups_flat"):
            weights = optimizer.fp32_partitioned_groups_flat
        else:
            weights = optimizer.single_partition_of_fp32_groups
        for weight in weights:  # as the first step would
            step = torch.zeros((), dtype=torch.float32, device=weight.device)
            self.flat[weight] = {"step": step} | {key: torch.zeros_like(weight) for key in MOMENTS}
        if not parted:  # DeepSpeed would do this after the first group's first step, and miss those of the others
            optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def step(self) -> Tensor:
        """How many steps there were: of each parameter as many."""
        step: Tensor = next(iter(self.flat.values()))["step"]
        return step

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return bool(self.step)

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        return {"step": self.step} | {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}

    def __setitem__(self, parameter: nn.Parameter, kept: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for state in self.flat.values():
            state["step"].copy_(kept["step"])
        for key in MOMENTS:
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, own(kept[key], parameter), key)
            else:
                safe_set_full_optimizer_state(parameter, kept[key], key)


def spoil(parameter: Any) -> None:
    """Makes a parameter's gradient no number."""
    from deepspeed.utils import safe_set_full_grad, safe_set_local_grad

    if hasattr(parameter, "ds_id"):
        safe_set_local_grad(parameter, torch.full_like(parameter.ds_tensor, math.nan))
    else:
        safe_set_full_grad(parameter, torch.full_like(parameter, math.nan))


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of a weight, be it parted by ZeRO-3."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def own(value: Tensor, parameter: Any) -> Tensor:
    """A whole tensor -> the part of it, filled up with zeros, that this process has where ZeRO-3 has parted weights."""
    place: Tensor = parameter.ds_tensor
    rank, size = torch.distributed.get_rank(parameter.ds_process_group), place.numel()
    mine = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(mine, (0, size - len(mine)))


@contextmanager
def unparted(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within it weights that ZeRO-3 has parted are whole; what every process writes into them stays."""
    if parted := [tensor for tensor in tensors if hasattr(tensor, "ds_id")]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parted, modifier_rank=0):
            yield
    else:
        yield
