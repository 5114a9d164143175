"""Compiled layers: the same gradients, one graph for batches of all shapes, and a model that stays as it was."""

import json
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from finetune.batches import Batches, Mixture
from finetune.checkpoint import learning
from finetune.collate import Collator
from finetune.compiled import Compiled
from finetune.config import BatchConfig, OptimConfig, TrainConfig
from finetune.folder import METRICS
from finetune.loop import train
from finetune.loss import learnt_loss

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def model(tiny_model, open_gates):
    """With attention and experts as a CPU trains them, but for the padded ones, which count rows."""
    tiny_model.decoder.set_attn_implementation("eager")
    tiny_model.decoder.set_experts_implementation("grouped_mm")
    return open_gates(tiny_model, 0.5).train()


def gradients(model, batch, compiled=None):
    model.zero_grad()
    if compiled is None:
        loss, _ = learnt_loss(model, model, batch)
    else:
        with compiled():
            loss, _ = learnt_loss(model, model, batch)
    loss.backward()  # what is computed again in backward is compiled, too
    return {name: parameter.grad.clone() for name, parameter in learning(model)}


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "tokens"), [(True, "resampler")])  # the run below has neither
def test_compiled_layers_give_the_same_gradients_whatever_the_shapes(recompute, model, cache, encoded):
    data, collate = encoded(6, 2), Collator(model, cache)
    if recompute:
        model.gradient_checkpointing_enable()
    compiled, graphs = Compiled(model, "aot_eager"), []
    # several images, one, none, and again in other numbers
    for part in (data[:4], data[10:], [], data[4:10], data[3:11], [], data[1:10], data[6:8]):
        batch = collate(part)
        plain, got = gradients(model, batch), gradients(model, batch, compiled)
        for name in plain:
            torch.testing.assert_close(got[name], plain[name], rtol=1e-4, atol=1e-5, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[2] == graphs[-1] < 15, "compiled again for another shape"
    assert not counters["graph_break"]
    model.gradient_checkpointing_disable()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
def test_a_compiled_run_learns_as_any(model, cache, encoded, tmp_path):
    """Into machine code. Only last bits differ."""
    config = TrainConfig(
        steps=6,
        log_every=1,
        calibrate=2,
        words=0,
        optim=OptimConfig(lr=3e-3, gate_lr=3e-3, warmup=0),
        batch=BatchConfig(images=2),
    )
    mixture = Mixture([Batches(encoded(6, 2), config.batch, 0)], [1])
    first, losses = {name: value.clone() for name, value in model.saved().items()}, []
    for compiled in (False, True):
        model.load_state_dict(first, strict=False)
        folder = tmp_path / str(compiled)
        folder.mkdir()
        train(model, cache, mixture, replace(config, compile=compiled), folder)
        losses.append([json.loads(line)["loss"] for line in (folder / METRICS).read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0] and counters["stats"]["unique_graphs"] > 0
