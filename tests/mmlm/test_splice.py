"""One splice for every architecture: hooks that come and go, and leave the decoder what it was."""

import copy

import pytest
import torch
from families import small
from parts import text_of
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, EncoderDecoderCache, StaticCache

from mmlm.splice import tokens_seen

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
    text = text_of(batch)
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


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "jamba"])
@torch.no_grad()
def test_recurrent_decoders_know_where_the_image_stands(kind, make_model, open_gates, picture):
    """Their caches do not tell how many tokens they have seen: Jamba's does."""
    model = open_gates(make_model(small(kind), layers=[1, 3]), 0.9)
    batch = dict(model.processor([[picture(1), picture(2)]], ["What<image> is it, and what<image> is that?"]))
    length = batch["input_ids"].shape[1]
    out = model.generate(**batch, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
    batch |= {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    whole = model(**batch, use_cache=False).logits[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), whole, atol=1e-3, rtol=1e-3)
    blind = model(**text_of(batch), use_cache=False).logits
    assert not torch.allclose(blind[:, length - 1 : -1], whole, atol=0.1)


@torch.no_grad()
def test_a_recurrent_decoder_may_be_asked_twice_within_one_look(make_model, open_gates, picture):
    """An empty cache says so, whatever was counted before."""
    model = open_gates(make_model(small("mamba"), layers=[1, 3]), 0.9)
    batch = dict(model.processor(picture(1), "What<image> is it?"))
    with model.looking(batch):
        one, other = (model.decoder.generate(**batch, max_new_tokens=6, do_sample=False) for _ in range(2))
    assert torch.equal(one, other)


@torch.no_grad()
def test_a_cropped_cache_is_believed(tiny_model, open_gates, picture):
    open_gates(tiny_model)
    batch = dict(tiny_model.processor(picture(1), "What is <image> it?"))
    whole = tiny_model(**batch).logits
    with tiny_model.looking(batch):
        cache = tiny_model.decoder(**batch, use_cache=True).past_key_values
        cache.crop(-5)
        again = tiny_model.decoder(input_ids=batch["input_ids"][:, -5:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, -5:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_caches_say_how_much_they_have_seen():
    ids = torch.arange(3, 10)[None]
    for kind, name in (("jamba", "past_key_values"), ("llama", "past_key_values"), ("mamba", "cache_params")):
        decoder = small(kind)
        cache = DynamicCache(config=decoder.config)
        assert tokens_seen(cache) == 0
        decoder(input_ids=ids, use_cache=True, **{name: cache})
        assert tokens_seen(cache) == (None if kind == "mamba" else 7)
    llama = small("llama")
    static = StaticCache(config=llama.config, max_cache_len=16)
    llama(input_ids=ids, past_key_values=static)
    assert int(tokens_seen(static)) == 7
    assert tokens_seen(EncoderDecoderCache(static, DynamicCache())) == 7
    assert tokens_seen(None) == tokens_seen(DynamicCache()) == 0
    assert tokens_seen([torch.zeros(1)]) is None
