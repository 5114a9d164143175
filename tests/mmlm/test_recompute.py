"""Activation checkpointing: the same gradients, bit for bit, for less memory; and after it, layers as they were."""

import copy

import pytest
import torch


def gradients(model, batch):
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.adapter.named_parameters() if p.grad is not None}


@pytest.fixture(params=["pyramid", "resampler"])
def tiny_model(request, make_model):
    return make_model(tokens=request.param)


@pytest.fixture
def batch(tiny_model, picture):
    images = [[picture(1)], [], [picture(2), picture(3)]]
    texts = ["<image>What is it?", "blind", "one <image> two <image> which?"]
    return tiny_model.processor(images, texts, padding_side="right")


def test_the_gradients_are_the_same(tiny_model, open_gates, batch):
    model = open_gates(tiny_model).train()
    plain, kept = gradients(model, batch)
    model.gradient_checkpointing_enable()
    logits, again = gradients(model, batch)
    assert torch.equal(logits, plain)
    assert kept.keys() == again.keys() and len(kept) > 30
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_dropout_is_drawn_once(make_model, picture, open_gates):
    lora = {"r": 4, "lora_dropout": 0.5, "target_modules": r"decoder\..*\.q_proj"}
    model = open_gates(make_model(lora=lora)).train()
    batch = model.processor([[picture(1)]], ["<image>What is it?"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(7)
        model(**batch).logits.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name})
    plain, again = found
    assert len(plain) == 2 * 6 and all(torch.equal(plain[name], again[name]) for name in plain)


def test_less_is_kept(tiny_model, open_gates, batch):
    model, sizes = open_gates(tiny_model).train(), []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):  # noqa: B023
            model(**batch)
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 2


def test_layers_run_again_from_the_first_block_on_and_blocks_see_the_media_still(tiny_model, open_gates, batch):
    model, runs = open_gates(tiny_model).train(), []
    for number, layer in enumerate(model.decoder.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: runs.append(number))
    model.gradient_checkpointing_enable()
    out = model(**batch).logits
    model(input_ids=batch["input_ids"])  # another call in between, which sees nothing
    runs.clear()
    out.sum().backward()
    assert sorted(set(runs)) == [1, 2, 3, 4, 5]


def test_without_gradients_nothing_changes(tiny_model, open_gates, picture):
    model = open_gates(tiny_model)
    prompt = {"max_new_tokens": 8, "do_sample": False}
    said = model.generate(picture(1), "What is it?", **prompt)
    model.gradient_checkpointing_enable()
    assert model.generate(picture(1), "What is it?", **prompt) == said


def test_a_cache_is_refused(tiny_model, batch):
    tiny_model.gradient_checkpointing_enable()
    with torch.no_grad():
        past = tiny_model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values: .*whole texts"):
        tiny_model(**batch, past_key_values=past)
    assert tiny_model(**batch, use_cache=True).past_key_values is None


def test_enabled_twice_and_disabled_the_layers_are_as_they_were(tiny_model):
    layers = tiny_model.decoder.model.layers
    before = [dict(vars(layer)) for layer in layers]
    tiny_model.gradient_checkpointing_enable()
    tiny_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert "forward" in vars(layers[-1])
    tiny_model.gradient_checkpointing_disable()
    tiny_model.gradient_checkpointing_disable()
    assert [dict(vars(layer)) for layer in layers] == before


def test_another_forward_of_a_layer_comes_back(tiny_model):
    """As accelerate's hooks put one there."""
    layer = tiny_model.decoder.model.layers[-1]
    layer.forward = mine = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    tiny_model.gradient_checkpointing_enable()
    tiny_model.gradient_checkpointing_disable()
    assert layer.forward is mine


def test_a_copy_computes_its_own_layers_again(tiny_model, open_gates, batch):
    tiny_model.gradient_checkpointing_enable()
    other = open_gates(copy.deepcopy(tiny_model), seed=1)
    assert all(vars(layer)["forward"].forward.__self__ is layer for layer in other.decoder.model.layers[1:])
