"""How several processes have one run: each with the whole model (DDP), or parted among them by FSDP2, ZeRO or teams."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune import zero
from finetune.shard import ready_to_shard
from mmlm.launched import sharded
from mmlm.model import MultimodalLM


def prepared(
    accelerator: Accelerator, model: MultimodalLM, optimizer: torch.optim.AdamW, clip: float
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What is called in place of the model, and its optimizer, as Accelerate was launched.

    Args:
        clip: largest norm of the gradient, for who clips by himself.
    """
    if model.decoder.tp_size:
        # Accelerate's DDP refuses a decoder in parts. What is trained is whole: its gradients are the same in all
        # processes of a team, and their mean over all processes is that over teams.
        return DistributedDataParallel(model, gradient_as_bucket_view=True), accelerator.prepare(optimizer)
    if accelerator.state.deepspeed_plugin:
        return zero.part(accelerator, model, optimizer, clip)
    if plugin := getattr(accelerator.state, "fsdp_plugin", None):
        ready_to_shard(model, plugin)
    elif sharded():
        raise ValueError("FSDP: Accelerate shards on GPUs and their like alone, and there is none: take ddp.yaml")
    forward, optimizer = accelerator.prepare(model, optimizer)
    return forward, optimizer


def layers_are_whole(accelerator: Accelerator) -> bool:
    """May a process run layers that the others do not? Parts of sharded ones are gathered in all at once."""
    deepspeed = accelerator.state.deepspeed_plugin
    return not getattr(accelerator.state, "fsdp_plugin", None) and not (deepspeed and deepspeed.zero_stage == 3)
