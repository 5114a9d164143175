"""`mmlm finetune` whose model is sharded, on CPUs: sharded.py WORDS...

Accelerate shards on accelerators alone. Here it is told to do so on a CPU; all else is as on GPUs.
"""

import os
import sys

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",  # as accelerate launch sets them for configs/accelerate/fsdp2.yaml
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}

import accelerate.accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from mmlm import cli

begin, shard = AcceleratorState.__init__, accelerate.accelerator.fsdp2_prepare_model


def begin_sharded(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def shard_and_look(accelerator, model):
    model = shard(accelerator, model)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) != name.startswith("vision."), f"all but the eyes: {name}"
    return model


AcceleratorState.__init__ = begin_sharded
accelerate.accelerator.fsdp2_prepare_model = shard_and_look
sys.exit(cli.main(["finetune", *sys.argv[1:]]))
