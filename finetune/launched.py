"""What a launcher (accelerate, torchrun) has told this process; it is known before torch is loaded."""

import os


def processes() -> int:
    """How many there are, in all."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Is this the process that speaks and writes for all?"""
    return os.environ.get("RANK", "0") == "0"


def sharded() -> bool:
    """Are decoder, adapter and optimizer to be parted among processes (FSDP)?"""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"
