"""The optimizer: every parameter in one group, and rates that rise and fall."""

import pytest

from finetune.checkpoint import learning
from finetune.config import OptimConfig
from finetune.optim import adamw, kind_of, schedule


@pytest.mark.parametrize("tokens", ["pyramid", "resampler"])
def test_every_parameter_is_in_one_group(tokens, make_model):
    tiny_model = make_model(tokens=tokens)
    optimizer = adamw(learning(tiny_model), OptimConfig(weight_decay=0.5))
    wide, matrices, vectors, gates = (group["params"] for group in optimizer.param_groups)
    assert sum(map(len, (wide, matrices, vectors, gates))) == len(list(tiny_model.adapter.parameters()))
    assert {id(p) for p in gates} == {
        id(gate) for block in tiny_model.adapter.blocks for gate in (block.attention_gate, block.ff_gate)
    }
    assert all(p.dim() >= 2 for p in wide + matrices) and all(p.dim() < 2 for p in vectors)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize("tokens", ["pyramid", "resampler"])
def test_what_reads_the_decoders_width_learns_by_it(tokens, make_model, tiny_decoder):
    """The wide matrices are those whose inputs are more on a decoder that is wider, and no others."""
    narrow, wide = (
        make_model(tiny_decoder(hidden_size=width, num_attention_heads=width // 16, head_dim=16), tokens=tokens)
        for width in (64, 128)
    )
    sizes = {name: parameter.shape for name, parameter in learning(narrow)}
    for name, parameter in learning(wide):
        reads_more = parameter.dim() == 2 and name.endswith(".weight") and parameter.shape[1] == 2 * sizes[name][1]
        assert reads_more == (kind_of(name, parameter) == "wide"), name
    rates = OptimConfig(lr=0.01, width=64)
    for model, width, share in ((narrow, 64, 1), (wide, 128, 0.5), (wide, 0, 1)):
        groups = adamw(learning(model), rates, width).param_groups
        assert [group["peak"] for group in groups] == [0.01 * share, 0.01, 0.01, rates.gate_lr]


def test_rates_rise_and_fall():
    config = OptimConfig(warmup=10, final=0.1)
    rates = [schedule(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.12
