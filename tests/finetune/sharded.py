"""One step of a model that two processes share, beside one of a whole model: sharded.py DECODER VISION PAIRS FOLDER.

Accelerate shards nothing on a CPU by itself; its own function that shards a model is called here as it calls it on
GPUs.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.tensor import DTensor

from finetune import checkpoint
from finetune.checkpoint import Progress, learning, whole
from finetune.collate import Collator
from finetune.config import OptimConfig
from finetune.encoded import encode
from finetune.loss import learnt_loss
from finetune.optim import adamw
from finetune.ranks import joined
from finetune.shard import ready_to_shard
from mmlm.data import open_data
from mmlm.model import MultimodalLM
from vision.features import FeatureCache

decoder, vision, pairs, folder = sys.argv[1:]
state = PartialState(cpu=True)
rates = OptimConfig(lr=0.01)


def make():
    torch.manual_seed(0)
    model = MultimodalLM.from_parts(decoder, vision, start=3, every=2)
    for name, parameter in learning(model):
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
    return model


def sharded(model):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="transformer_based_wrap"
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        device=state.device,
        is_main_process=state.is_main_process,
        mixed_precision="no",
        torch_device_mesh=None,
        parallelism_config=None,
    )
    ready_to_shard(model, plugin)
    return fsdp2_prepare_model(accelerator, model)


def gradients(model, collate, entries, scale):
    loss, _ = learnt_loss(model, model, collate(entries))
    (loss * scale).backward()
    return whole({name: parameter.grad for name, parameter in learning(model)})


with joined():
    one, two = make(), sharded(make())
    kinds = {name: isinstance(parameter, DTensor) for name, parameter in two.named_parameters()}
    assert all(kinds[name] != name.startswith("vision.") for name in kinds), "all but the eyes"

    cache = FeatureCache(one.vision, Path(folder, "features"))
    entries = encode(one, cache, list(open_data(pairs)), "encoding")
    learnt = sum(entry.text.answer for entry in entries)
    wanted = gradients(one, Collator(one, cache), entries, 1 / learnt)
    collate = Collator(two, cache)
    got = gradients(two, collate, entries[state.process_index :: 2], 2 / learnt)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6, msg=name)

    # A part without an image has the same layers run, and gradients of zero.
    gradients(two, collate, entries[:4] if state.is_main_process else [], 1.0)

    optimizer = adamw(learning(two), rates)
    optimizer.step()
    checkpoint.save(Path(folder), Progress(1), two, optimizer, 2)
    fresh = make()
    its = adamw(learning(fresh), rates)
    assert checkpoint.load(Path(folder), fresh, its) == Progress(1)
    assert all(value.equal(fresh.saved()[name]) for name, value in whole(two.saved()).items())
    other = sharded(make())
    again = adamw(learning(other), rates)
    assert checkpoint.load(Path(folder), other, again) == Progress(1)
    assert all(value.equal(fresh.saved()[name]) for name, value in whole(other.saved()).items())
    for model, optimizer in ((fresh, its), (other, again)):
        assert checkpoint.moments(model, optimizer).keys() == {name for name, _ in learning(model)}
        assert not checkpoint.moments(two, adamw(learning(two), rates))
    assert two.adapter.gates().keys() == one.adapter.gates().keys()
    two.save_pretrained(Path(folder, "saved"), is_main_process=state.is_main_process, state_dict=whole(two.saved()))
