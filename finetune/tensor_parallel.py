"""One decoder for several processes, each with a part of every layer's matrices: tensor parallelism.

Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053. Which matrices are parted, and where the parts' results are added
up, is transformers' own plan of each architecture. Eyes and adapter are whole in each process.
"""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.distributed import DistributedConfig

from finetune.encoded import Encoded
from mmlm.model import MultimodalLM


class Teams(DistributedConfig):
    """Teams of processes, each with a decoder: between them transformers would part it once more (FSDP)."""

    @property
    def dp_size(self) -> int:
        return 1


def parted(size: int) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told, so that every `size` processes have one decoder together."""
    if size == 1:
        return {}
    return {"distributed_config": Teams(tp_size=size, dp_replicate_size=PartialState().num_processes // size)}


def agreed(parts: Sequence[Sequence[Encoded]], broken: list[str], size: int) -> tuple[list[list[Encoded]], list[str]]:
    """The samples that every process of this one's team could read, which all of them run; and what is told of others.

    To be called in every process.
    """
    read: list[list[str]] = gather_object([[entry.id for part in parts for entry in part]])
    told: list[list[str]] = gather_object([broken])
    first = PartialState().process_index // size * size
    team = slice(first, first + size)
    known = set.intersection(*map(set, read[team]))
    return [[entry for entry in part if entry.id in known] for part in parts], sorted(set().union(*told[team]))


def check_parted(model: MultimodalLM, size: int) -> None:
    """ValueError for a decoder that cannot be parted, and for one that is and would learn."""
    if size == 1:
        return
    text = model.decoder.config.get_text_config(decoder=True)
    for name in ("num_attention_heads", "num_key_value_heads"):  # of which each process takes whole ones
        count = getattr(text, name, None)
        if type(count) is int and count % size:
            raise ValueError(
                f"model.tensor_parallel: {size}, and the decoder's {name} is {count}; take a divisor of it"
            )
    if getattr(model.decoder, "is_quantized", False):  # each part would get scales of its own
        raise ValueError(f"model.tensor_parallel: {size}, and the decoder is quantized; take one of the two")
    if learns := sorted(name for name in model.trained if name.startswith("decoder.")):
        raise ValueError(
            f"model.tensor_parallel: {size}, and of the decoder, which stays as it is then, {learns[0]} and "
            f"{len(learns) - 1} more would learn; leave out model.lora and model.unfreeze"
        )
