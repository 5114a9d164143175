"""Frozen weights, adapter and optimizer parted among processes (FSDP2), once each process has read and fitted them."""

from typing import Any

from mmlm.model import MultimodalLM


def ready_to_shard(model: MultimodalLM, plugin: Any) -> None:
    """Tells Accelerate's FSDP plugin what stays whole: the eyes, which look at other images in each process.

    ValueError for FSDP of the first version.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: {plugin.fsdp_version}: takes 2, as configs/accelerate/fsdp2.yaml has it")
    plugin.ignored_modules = [model.vision]
