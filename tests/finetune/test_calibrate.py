"""Calibration: what goes into the blocks is white, what they add has the decoder's unit, and nothing is said yet."""

import copy

import pytest
import torch
from families import small

from finetune.calibrate import calibrate, record
from finetune.config import BatchConfig
from finetune.encoded import IGNORED

STATES = 400


def fresh(batch):
    """The batch with a cache of its own: a forward lengthens it."""
    return {name: copy.deepcopy(value) if name == "past_key_values" else value for name, value in batch.items()}


@pytest.fixture(params=["pyramid", "resampler"])
def tokens(request):
    return request.param


@pytest.fixture
def batches(tiny_model, cache, encoded, collated):
    batches = collated(tiny_model, cache, encoded(8, 10), BatchConfig(8, 10))
    return [batches[number] for number in range(3)]


def states_of(model, batches):
    """What goes into each block where tokens are learnt."""
    where = [batch["labels"] != IGNORED for batch in batches]
    parts = [record(model, fresh(batch), its)[:-1] for batch, its in zip(batches, where, strict=True)]
    return [torch.cat(mine) for mine in zip(*parts, strict=True)]


def test_blocks_are_shown_white_states(tiny_model, batches):
    calibrate(tiny_model, map(fresh, batches))
    for block, states in zip(tiny_model.adapter.blocks, states_of(tiny_model, batches), strict=True):
        assert len(states) > STATES
        for norm in (block.norm, block.ff_norm):
            white = norm(states)
            covariance = white.T @ white / len(white)
            assert white.mean(0).abs().max() < 1e-3
            shrunk = torch.linalg.eigvalsh(covariance)
            assert shrunk.max() < 1.01 and shrunk.mean() > 0.3, "the identity, but for what is shrunk"
            off = covariance - torch.diag(covariance.diagonal())
            assert off.abs().mean() < 0.1
        torch.testing.assert_close(block.scale, states.std(0))


def test_pooled_features_are_whitened(tiny_model, batches):
    calibrate(tiny_model, map(fresh, batches))
    for norm, parts in zip(
        tiny_model.adapter.media.norms, zip(*(batch["media_values"] for batch in batches), strict=True), strict=True
    ):
        values = norm(torch.cat(parts))
        covariance = values.T @ values / len(values)
        assert values.mean(0).abs().max() < 1e-3
        assert torch.linalg.eigvalsh(covariance).max() < 1.01
        assert (covariance - torch.diag(covariance.diagonal())).abs().mean() < 0.1


def test_a_calibrated_model_is_born_exact(tiny_model, batches):
    batch = {name: value for name, value in batches[0].items() if name != "labels"}
    blind = {name: value for name, value in batch.items() if not name.startswith("media")}
    calibrate(tiny_model, [fresh(batches[0])])
    assert tiny_model(**fresh(batch)).logits.equal(tiny_model(**fresh(blind)).logits)


@pytest.mark.parametrize("kind", ["deepseek_v4", "qwen4_exp", "gemma3n"])
def test_each_of_several_residual_streams_is_calibrated_for(kind, make_model, tokens, tiny_model, batches):
    """The batches are the same as of any decoder with that tokenizer, but for the prefixes it has kept."""
    model = make_model(small(kind), layers=[1, 3], tokens=tokens)
    batch = {name: value for name, value in batches[0].items() if name != "past_key_values"}
    ids = batch["input_ids"]
    batch |= {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
    where = batch["labels"] != IGNORED
    calibrate(model, [batch])
    *states, _ = record(model, batch, where)
    for block, its in zip(model.adapter.blocks, states, strict=True):
        assert its.shape == (int(where.sum()) * 4, model.config.hidden)
        torch.testing.assert_close(block.scale, its.std(0))


def test_it_tells_how_far_the_last_block_reaches(tiny_model, batches):
    """What the output embedding is given rises with the last block's states as said: the rest is not linear."""
    reach = calibrate(tiny_model, map(fresh, batches))
    where = [batch["labels"] != IGNORED for batch in batches]
    parts = [record(tiny_model, fresh(batch), its)[-2:] for batch, its in zip(batches, where, strict=True)]
    last, said = (torch.cat(mine) for mine in zip(*parts, strict=True))
    last, said = last - last.mean(0), said - said.mean(0)
    torch.testing.assert_close((last * (said - reach * last)).mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    assert (said - reach * last).square().mean() < 0.9 * said.square().mean()


def test_calibration_trains_nothing_and_leaves_no_hook(tiny_model, batches):
    frozen = {name: p.clone() for name, p in tiny_model.decoder.named_parameters()}
    hooks = [len(layer._forward_pre_hooks) for layer in tiny_model.decoder.model.layers]
    calibrate(tiny_model, map(fresh, batches))
    assert hooks == [len(layer._forward_pre_hooks) for layer in tiny_model.decoder.model.layers]
    assert all(p.equal(frozen[name]) for name, p in tiny_model.decoder.named_parameters())
    assert all(p.grad is None for p in tiny_model.parameters())


def test_the_same_batches_give_the_same_calibration(make_model, tokens, batches):
    one, other = make_model(tokens=tokens), make_model(tokens=tokens)
    for model in (one, other):
        calibrate(model, map(fresh, batches))
    for name, tensor in one.adapter.state_dict().items():
        assert tensor.equal(other.adapter.state_dict()[name]), name
