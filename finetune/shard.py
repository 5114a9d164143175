"""Models too large for one device: frozen weights, adapter and optimizer parted among processes (FSDP2)."""

from typing import Any

from mmlm.model import MultimodalLM


def ready_to_shard(model: MultimodalLM, plugin: Any) -> None:
    """Tells Accelerate's FSDP plugin what stays whole: the eyes, which look at other images in each process.

    ValueError for FSDP of the first version, and for eyes that are trained.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: {plugin.fsdp_version}: takes 2, as configs/accelerate/fsdp2.yaml has it")
    if seen := [name for name in model.trained if name.startswith("vision.")]:
        raise ValueError(f"{seen[0]} is trained, and the eyes are not sharded: take configs/accelerate/ddp.yaml")
    plugin.ignored_modules = [model.vision]
