"""Frozen weights, adapter and optimizer parted among processes (FSDP2).

Each process reads the whole model into its own memory; sharding takes it to the device layer by layer, of which a part
stays there: a device need not have room for the whole.
"""

from typing import Any

import torch

from mmlm.launched import sharded
from mmlm.model import MultimodalLM


def place(model: MultimodalLM, device: torch.device) -> None:
    """Moves the model to the device; one that will be sharded stays where it is, but for the eyes."""
    (model.vision if sharded() else model).to(device)


def ready_to_shard(model: MultimodalLM, plugin: Any) -> None:
    """Tells Accelerate's FSDP plugin what stays whole: the eyes, which look at other images in each process.

    ValueError for FSDP of the first version.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: {plugin.fsdp_version}: takes 2, as configs/accelerate/fsdp2.yaml has it")
    plugin.ignored_modules = [model.vision]
