"""The frozen decoder: found, loaded, frozen, told apart."""

import copy

import pytest
import torch
from families import small
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import text_of
from transformers import (
    BartConfig,
    BartForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    TorchAoConfig,
)

from mmlm.decoder import (
    active_parameters,
    expert_counts,
    fast_device,
    fast_dtype,
    find_layers,
    fingerprint,
    freeze,
    load_decoder,
)
from mmlm.model import MultimodalLM


def test_a_saved_decoder_is_loaded_as_it_is(tiny_decoder, tokenizer, tmp_path):
    decoder = tiny_decoder()
    decoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, its = load_decoder(tmp_path)
    assert fingerprint(loaded) == fingerprint(decoder)
    assert its("What?")["input_ids"] == tokenizer("What?")["input_ids"]
    assert its.chat_template == tokenizer.chat_template
    assert load_decoder(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder"])
def test_a_decoder_that_is_nowhere_is_refused_with_the_mend(name):
    with pytest.raises(ValueError, match=f"decoder='{name}' cannot be loaded.*give a hub id, a folder"):
        load_decoder(name)


def test_a_folder_without_a_decoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_decoder(tmp_path)


def test_a_damaged_decoder_is_refused(tiny_decoder, tokenizer, tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be loaded .*incomplete metadata"):
        load_decoder(tmp_path)


def test_where_the_decoder_is_found_the_tokenizer_is_too(tiny_decoder, tokenizer, tmp_path):
    tiny_decoder().save_pretrained(tmp_path / "sub")
    tokenizer.save_pretrained(tmp_path / "sub")
    decoder, its = load_decoder(tmp_path, subfolder="sub", local_files_only=True, trust_remote_code=False)
    assert decoder.config.num_hidden_layers == 6
    assert its.get_vocab() == tokenizer.get_vocab()


def test_frozen_modules_are_in_eval_mode_without_gradients(tiny_decoder):
    decoder = tiny_decoder().train()
    freeze(decoder)
    assert not any(module.training for module in decoder.modules())
    assert not any(p.requires_grad for p in decoder.parameters())


def test_layers_are_found(tiny_decoder):
    for count in (1, 4, 6):  # 4 is also the number of experts
        decoder = tiny_decoder(num_hidden_layers=count)
        assert find_layers(decoder) is decoder.model.layers


def test_the_layers_are_the_decoders_not_the_encoders():
    sizes = {"d_model": 16, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 50}
    decoder = BartForCausalLM(BartConfig(encoder_layers=2, decoder_layers=3, **sizes))
    assert find_layers(decoder) is decoder.model.decoder.layers


def test_the_layers_are_the_texts_not_its_own_eyes():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = sizes | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 50}
    config = Gemma3Config(text_config=text, vision_config=sizes | {"model_type": "siglip_vision_model"})
    decoder = Gemma3ForConditionalGeneration(config)
    assert find_layers(decoder) is decoder.model.language_model.layers


def test_layers_in_pieces_are_refused():
    """XLM has a list of all attentions and one of all norms: before an attention is not in the residual stream."""
    with pytest.raises(ValueError, match="XLMWithLMHeadModel has no list of 4 layers"):
        find_layers(small("xlm"))


@pytest.mark.parametrize(
    ("kind", "counts"), [("mixtral", (4, 2)), ("dbrx", (4, 2)), ("gemma4", (4, 2)), ("llama", (0, 0))]
)
def test_experts_are_counted(kind, counts):
    assert expert_counts(small(kind).config) == counts


def test_what_has_no_layers_is_refused():
    with pytest.raises(ValueError, match="must be a causal language model of transformers"):
        find_layers(torch.nn.Linear(2, 2))


def test_active_parameters_are_those_one_token_goes_through(tiny_decoder):
    """Of two decoders that differ in one expert a layer, the active parameters differ in its routing alone."""
    one, more = tiny_decoder(num_local_experts=2), tiny_decoder(num_local_experts=3)
    expert = 3 * 64 * 96
    assert sum(p.numel() for p in one.parameters()) == active_parameters(one)
    assert sum(p.numel() for p in more.parameters()) - active_parameters(more) == 6 * expert
    assert active_parameters(more) - active_parameters(one) == 6 * 64


def test_a_fingerprint_is_of_names_shapes_and_values(tiny_decoder):
    decoder = tiny_decoder()
    print_ = fingerprint(decoder)
    assert fingerprint(copy.deepcopy(decoder)) == print_
    assert fingerprint(tiny_decoder()) == print_
    assert fingerprint(copy.deepcopy(decoder).bfloat16()) == print_
    assert fingerprint(copy.deepcopy(decoder).train()) == print_
    assert fingerprint(tiny_decoder(1)) != print_
    assert fingerprint(decoder.model) != print_


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loaded", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_fingerprint_of_16_bits_is_the_same_in_any_dtype(kept, loaded):
    """Tiny and huge values too, which the one has and the other has not."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(1024, generator=random) * 10.0 ** torch.randint(-9, 7, (1024,), generator=random)
    module = torch.nn.ParameterDict({"w": values.to(kept)})
    assert fingerprint(copy.deepcopy(module).to(loaded)) == fingerprint(module)


@given(st.integers(1, 3000), st.data())
@settings(max_examples=30)
def test_a_fingerprint_notices_the_first_and_the_last_value(size, data):
    one = torch.nn.ParameterDict({"w": torch.zeros(size)})
    other = copy.deepcopy(one)
    other["w"].data[data.draw(st.sampled_from([0, -1]))] = 1
    assert fingerprint(one) != fingerprint(other)


def test_a_fingerprint_notices_any_value_of_a_small_tensor():
    prints = set()
    for place in range(1024):
        values = torch.zeros(1024)
        values[place] = 1
        prints.add(fingerprint(torch.nn.ParameterDict({"w": values})))
    assert len(prints) == 1024


def test_empty_and_whole_numbered_tensors_are_no_matter():
    module = torch.nn.BatchNorm1d(3)
    before = fingerprint(module)
    module.num_batches_tracked += 1
    assert fingerprint(module) == before
    fingerprint(torch.nn.ParameterDict({"w": torch.zeros(0)}))


def test_the_fast_dtype_is_one_that_multiplies():
    x = torch.ones(4, 4, dtype=fast_dtype())
    assert (x @ x == 4).all()
    assert (x.to(fast_device()) @ x.to(fast_device()) == 4).all()


# -- what goes through to transformers --------------------------------------------------------------------------------

AWAY = {"model.embed_tokens": "disk", "model.layers.1": "disk", "model.layers.4": "disk", "lm_head": "disk"}
HERE = ["model.norm", "model.rotary_emb", *(f"model.layers.{number}" for number in (0, 2, 3, 5))]


@pytest.fixture(scope="module")
def folder(tiny_decoder, tokenizer, tmp_path_factory):
    """A saved decoder."""
    folder = tmp_path_factory.mktemp("decoder")
    tiny_decoder().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def with_eyes(folder, tiny_vision, open_gates):
    """Makes a model of the saved decoder, gates open: with_eyes(**decoder_kwargs)."""

    def make(**kwargs):
        torch.manual_seed(0)
        parts = {"decoder": folder, "vision": tiny_vision, "decoder_kwargs": kwargs}
        return open_gates(MultimodalLM.from_parts(**parts, layers=[1, 3, 5]))

    return make


@pytest.mark.parametrize(
    ("kwargs", "holds"),
    [
        ({}, lambda decoder: decoder.dtype == torch.float32),
        ({"dtype": torch.bfloat16}, lambda decoder: decoder.dtype == torch.bfloat16),
        ({"dtype": "float16"}, lambda decoder: decoder.dtype == torch.float16),
        ({"attn_implementation": "eager"}, lambda decoder: decoder.config._attn_implementation == "eager"),
        ({"attn_implementation": "sdpa"}, lambda decoder: decoder.config._attn_implementation == "sdpa"),
        ({"experts_implementation": "eager"}, lambda decoder: decoder.config._experts_implementation == "eager"),
        ({"experts_implementation": "batched_mm"}, lambda d: d.config._experts_implementation == "batched_mm"),
        ({"device_map": "cpu"}, lambda decoder: decoder.device.type == "cpu"),
        ({"device_map": {"": "cpu"}}, lambda decoder: decoder.device.type == "cpu"),
        ({"device_map": "auto"}, lambda decoder: all(not p.is_meta for p in decoder.parameters())),
    ],
    ids=lambda its: str(its) if isinstance(its, dict) else "",
)
@torch.no_grad()
def test_settings_of_the_decoder_go_through(kwargs, holds, with_eyes, folder, picture):
    model = with_eyes(**kwargs)
    assert holds(model.decoder)
    batch = model.processor([[picture(1)], []], ["<image>What?", "Blind"])
    text = text_of(batch)
    base = load_decoder(folder, **kwargs)[0]
    got, plain = model(**batch).logits, base(**text).logits
    assert torch.equal(model(**text).logits, plain)
    assert not torch.allclose(got[0], plain[0], atol=0.1)
    assert model.generate_tokens(batch, max_new_tokens=3).shape[0] == 2


@torch.no_grad()
def test_weights_on_a_disk_are_as_good_as_in_memory(with_eyes, folder, tiny_vision, picture, tmp_path):
    spread = {"device_map": AWAY | dict.fromkeys(HERE, "cpu"), "offload_folder": tmp_path / "away"}
    model, plain = with_eyes(**spread), with_eyes()
    assert model.decoder.device.type == "meta" and model.device.type == "cpu"
    batch = plain.processor([[picture(1)], []], ["<image>What?", "Blind"])
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    how = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate_tokens(batch, **how), plain.generate_tokens(batch, **how))
    assert model.config.fingerprint == plain.config.fingerprint
    plain.save_pretrained(tmp_path / "run")
    again = MultimodalLM.from_pretrained(tmp_path / "run", vision=tiny_vision, decoder_kwargs=spread)
    assert torch.equal(again(**batch).logits, plain(**batch).logits)


@pytest.fixture
def quantized():
    """`decoder_kwargs` that quantize to 8 bits. (bitsandbytes, which needs a GPU for most, goes the same way.)"""
    torchao = pytest.importorskip("torchao.quantization")
    return {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}


def test_a_quantized_decoder_sees_and_is_itself_without_an_image(quantized, with_eyes, folder, picture):
    model, base = with_eyes(**quantized), load_decoder(folder, **quantized)[0]
    weight = model.decoder.model.layers[1].self_attn.q_proj.weight
    assert type(weight).__module__.startswith("torchao")
    batch = model.processor([[picture(1)], []], ["<image>What?", "Blind"])
    text = text_of(batch)
    got, plain = model(**batch).logits, base(**text).logits
    assert torch.equal(model(**text).logits, plain) and torch.equal(got[1], plain[1])
    assert not torch.allclose(got[0], plain[0], atol=0.1)
    got.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.adapter.parameters())
    how = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate_tokens(batch, **how), model.generate_tokens(batch, **how, use_cache=False))


def test_an_adapter_on_a_quantized_decoder_is_saved_and_loaded(
    quantized, with_eyes, folder, tiny_vision, picture, tmp_path
):
    model = with_eyes(**quantized)
    model.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path, vision=tiny_vision)
    batch = model.processor(picture(1), "What?")
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="other decoder weights than those loaded"):
        MultimodalLM.from_pretrained(tmp_path, vision=tiny_vision, decoder_kwargs={"quantization_config": None})


def test_a_fingerprint_notices_quantized_values(quantized, folder):
    decoder = load_decoder(folder, **quantized)[0]
    before = fingerprint(decoder)
    assert before == fingerprint(load_decoder(folder, **quantized)[0]) != fingerprint(load_decoder(folder)[0])
    decoder.model.layers[2].self_attn.k_proj.weight.qdata[0, 0] += 1
    assert fingerprint(decoder) != before
