"""One splice for every architecture: hooks that come and go, and leave the decoder what it was."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 4},
    "llama": {},
}


@pytest.fixture(params=ARCHITECTURES)
def decoder(request, tokenizer):
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(request.param, **SIZES, **ARCHITECTURES[request.param], **ids, bos_token_id=None)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def test_architectures_are_spliced_as_they_are(decoder, make_model, open_gates, picture):
    base = copy.deepcopy(decoder)
    model = make_model(decoder, layers=[1, 2])
    assert list(decoder.state_dict()) == list(base.state_dict())
    batch = model.processor([picture(1), picture(2)], ["What is it?", "And what is <image> this?"])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain = base(**text).logits
    assert torch.equal(model(**batch).logits, plain)  # born exact
    open_gates(model, 0.9)
    assert torch.equal(model(**text).logits, plain)  # blind is exact
    assert not torch.allclose(model(**batch).logits, plain, atol=0.05)
    tokens = model.generate_tokens(batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, model.generate_tokens(batch, max_new_tokens=8, do_sample=False, use_cache=False))


@torch.no_grad()
def test_detached_the_decoder_is_as_it_was_loaded(tiny_model, tiny_decoder, open_gates, picture):
    open_gates(tiny_model)
    batch = tiny_model.processor(picture(1), "What is it?")
    tiny_model.splice.detach()
    assert not any(module._forward_pre_hooks for module in tiny_model.decoder.modules())
    base = tiny_decoder()(input_ids=batch["input_ids"]).logits
    assert torch.equal(tiny_model(**batch).logits, base)


def test_views_are_nested_and_given_back(tiny_model, picture):
    splice = tiny_model.splice
    assert splice.view is None
    with tiny_model.looking(dict(tiny_model.processor(picture(1), "a"))):
        outer = splice.view
        with tiny_model.looking(dict(tiny_model.processor(picture(2), "a"))):
            assert splice.view not in (None, outer)
        assert splice.view is outer
    assert splice.view is None


def test_one_model_may_look_while_another_does(tiny_model, make_model, picture):
    other = make_model()
    batch = tiny_model.processor(picture(1), "a")
    with tiny_model.looking(dict(batch)):
        view = tiny_model.splice.view
        with other.looking(dict(batch)):
            assert tiny_model.splice.view is view is not other.splice.view is not None
        assert other.splice.view is None


@torch.no_grad()
def test_embeddings_may_come_in_place_of_ids(tiny_model, open_gates, picture):
    open_gates(tiny_model)
    batch = dict(tiny_model.processor(picture(1), "What is it?"))
    whole = tiny_model(**batch).logits
    embedded = tiny_model.decoder.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(tiny_model(inputs_embeds=embedded, **batch).logits, whole)


@torch.no_grad()
def test_a_prompt_may_come_in_pieces(tiny_model, open_gates, picture):
    open_gates(tiny_model)
    batch = dict(tiny_model.processor(picture(1), "What is <image> it?"))
    whole = tiny_model(**batch).logits
    ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    first = tiny_model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True, **batch)
    second = tiny_model(input_ids=ids[:, 6:], attention_mask=mask, past_key_values=first.past_key_values, **batch)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=1e-4, rtol=1e-4)


def test_checkpointed_layers_see_the_media_again_in_backward(tiny_model, open_gates, picture):
    open_gates(tiny_model)
    batch = tiny_model.processor(picture(1), "What is it?")
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny_model.decoder.activation_checkpointing_enable({"use_reentrant": False})
            tiny_model.decoder.train()  # transformers checkpoints in train mode alone; there is no dropout here
        with tiny_model.looking(batch_copy := dict(batch)):
            loss = tiny_model.decoder(**batch_copy, use_cache=False).logits.logsumexp(-1).sum()
            grads.append(torch.autograd.grad(loss, tiny_model.adapter.blocks[0].q.weight)[0])
    torch.testing.assert_close(*grads)
