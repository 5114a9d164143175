"""What a launcher (accelerate, torchrun) has told this process; it is known before torch is loaded."""

import os
from importlib.util import find_spec


def processes() -> int:
    """How many there are, in all."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Is this the process that speaks and writes for all?"""
    return os.environ.get("RANK", "0") == "0"


def sharded() -> bool:
    """Are decoder, adapter and optimizer to be parted among processes by FSDP?"""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def zero_stage() -> int:
    """What DeepSpeed is to part among processes: 1, the optimizer; 2, gradients, too; 3, weights, too; 0: it is not.

    ValueError for what else DeepSpeed was told, and is not known.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return 0
    if find_spec("deepspeed") is None:
        raise ValueError('DeepSpeed is not installed: pip install "mmlm-adapter[deepspeed]", or take ddp.yaml')
    for name, variable, *known in (
        ("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "1", "2", "3"),
        ("deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"),
        ("offload_optimizer_device", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        ("offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        ("mixed_precision", "ACCELERATE_MIXED_PRECISION", "no"),
    ):
        if (value := os.environ.get(variable, known[0])) not in known:
            raise ValueError(f"{name}: {value}: takes {' or '.join(known)}, as configs/accelerate/zero1.yaml has it")
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))


def check_teams(size: int) -> None:
    """ValueError if processes cannot have decoders together, `size` of them one, as they were launched."""
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
        raise ValueError("parallelism_config: leave it out, with ddp.yaml, and say --model.tensor_parallel 2 instead")
    if processes() % size:
        raise ValueError(
            f"model.tensor_parallel: {size} of {processes()} processes: launch {size}, or a multiple of it"
        )
    if size > 1 and (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ValueError(f"mixed_precision: {precision}: takes no where model.tensor_parallel is {size}")
    if size > 1 and (sharded() or zero_stage()):
        raise ValueError(f"model.tensor_parallel: {size}, and FSDP or ZeRO parts what it does: take ddp.yaml for it")
