"""What is trained besides the adapter: patterns that unfreeze, and LoRA by peft."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from mmlm.model import MultimodalLM

GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LORAS = {
    "attention": {"r": 4},
    "named": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "experts": {"r": 2, "target_modules": [], "target_parameters": EXPERTS},
    "vision": {"r": 2, "target_modules": r"vision\..*conv_pwl"},
    "both": {"r": 2, "target_modules": r"vision\..*conv_pwl|decoder\..*[qv]_proj"},
}


@pytest.fixture(params=LORAS.values(), ids=LORAS)
def lora(request):
    return request.param


@pytest.fixture
def own_vision(tiny_vision):
    """One that may be changed."""
    return copy.deepcopy(tiny_vision)


def stirred(model, seed=0):
    """The model with every weight that is trained set at random."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(model.trained):
            place = model.get_parameter(name)
            if not name.startswith("adapter."):
                place.add_(torch.randn(place.shape, generator=random).to(place.dtype) * 0.2)
    return model


def step(model, batch):
    """One step of training everything that is to be trained; the names of what it has changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    for _ in range(2):  # the first half of a LoRA learns once the second is not zero
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_by_default_the_adapter_alone_is_trained(tiny_model):
    assert tiny_model.trained == {f"adapter.{name}" for name, _ in tiny_model.adapter.named_parameters()}
    assert tiny_model.trained == {name for name, p in tiny_model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "some", "none"),
    [
        (["vision.*"], "vision.backbones.0.maps.conv_stem.weight", "decoder."),
        (["decoder.*norm*"], "decoder.model.layers.3.input_layernorm.weight", "vision."),
        (["*norm*", "*lm_head*"], "decoder.lm_head.weight", "vision.backbones.0.maps.conv_stem"),
        (["*"], "decoder.model.embed_tokens.weight", "nothing"),
    ],
)
def test_patterns_unfreeze(patterns, some, none, make_model, own_vision, open_gates, picture, tmp_path):
    model = open_gates(make_model(unfreeze=patterns, vision=own_vision)).train()
    assert some in model.trained and not any(name.startswith(none) for name in model.trained)
    batch = model.processor(picture(1), "What is<image> it?", padding_side="right")
    changed = step(model, batch)
    assert some in changed and changed <= model.trained
    assert not any(module.training for module in model.decoder.modules())
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.saved().keys() >= model.trained


@pytest.mark.parametrize("patterns", [["vision.*"], ["decoder.*norm*"], ["*"]])
def test_what_is_unfrozen_is_saved_and_loaded(
    patterns, make_model, own_vision, tiny_vision, tiny_decoder, tokenizer, picture, tmp_path
):
    model = stirred(make_model(unfreeze=patterns, vision=own_vision))
    model.save_pretrained(tmp_path)
    parts = {"tokenizer": tokenizer, "vision": copy.deepcopy(tiny_vision)}
    again = MultimodalLM.from_pretrained(tmp_path, decoder=tiny_decoder(), **parts)
    batch = model.processor(picture(1), "What is<image> it?")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.trained == model.trained
    if patterns == ["vision.*"]:
        with pytest.raises(ValueError, match="other decoder weights"):
            MultimodalLM.from_pretrained(tmp_path, decoder=tiny_decoder(1), **parts)


@pytest.mark.parametrize("patterns", [["*"], ["decoder.lm_head*"], ["decoder.*embed_tokens*"]], ids=str)
def test_tied_embeddings_are_unfrozen_by_either_name(
    patterns, make_model, tiny_vision, tiny_decoder, tokenizer, picture, tmp_path
):
    vision = copy.deepcopy(tiny_vision)
    model = stirred(make_model(tiny_decoder(tie_word_embeddings=True), unfreeze=patterns, vision=vision))
    model.save_pretrained(tmp_path)
    parts = {"tokenizer": tokenizer, "vision": copy.deepcopy(tiny_vision)}
    again = MultimodalLM.from_pretrained(tmp_path, decoder=tiny_decoder(tie_word_embeddings=True), **parts)
    batch = model.processor(picture(1), "What is<image> it?")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_pattern_that_matches_nothing_is_refused(make_model):
    with pytest.raises(ValueError, match=r"unfreeze: 'encoder\.\*' matches no parameter"):
        make_model(unfreeze=["encoder.*"])


def test_lora_starts_as_nothing_and_learns(lora, make_model, own_vision, picture):
    plain = make_model()
    model = make_model(lora=lora, vision=own_vision)
    batch = model.processor(picture(1), "What is<image> it?", padding_side="right")
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, plain(**batch).logits, atol=1e-5)
    assert any(".lora_" in name for name in model.trained)
    with torch.no_grad():
        for block in model.adapter.blocks:  # eyes wide open, for the vision's sake
            block.attention_gate.fill_(0.7)
            block.ff_gate.fill_(0.7)
    changed = step(model.train(), batch)
    assert any(".lora_" in name for name in changed) and changed <= model.trained
    assert all(".lora_" in name or name.startswith("adapter.") for name in changed)


def test_merged_and_unmerged_say_the_same(lora, make_model, own_vision, open_gates, picture):
    model = stirred(open_gates(make_model(lora=lora, vision=own_vision)))
    batch = model.processor([[picture(1)], []], ["What is<image> it?", "And without?"])
    with torch.no_grad():
        before, said = model(**batch).logits, model.generate([[picture(1)], []], ["What<image>?", "And?"], **GREEDY)
        model.merge_lora()
        assert model.merged
        assert torch.allclose(model(**batch).logits, before, atol=2e-3)
        assert model.generate([[picture(1)], []], ["What<image>?", "And?"], **GREEDY) == said
        model.unmerge_lora()
        assert not model.merged
        assert torch.allclose(model(**batch).logits, before, atol=2e-3)


@pytest.mark.parametrize("merged", [False, True])
def test_lora_is_saved_and_loaded(
    merged, lora, make_model, own_vision, tiny_vision, tiny_decoder, tokenizer, picture, tmp_path
):
    model = stirred(make_model(lora=lora, vision=own_vision))
    batch = model.processor(picture(1), "What is<image> it?")
    with torch.no_grad():
        logits = model(**batch).logits
    if merged:
        model.merge_lora()
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names == model.saved().keys() and any(".lora_" in name for name in names)
    assert all(name.startswith("adapter.") or ".lora_" in name for name in names)
    again = MultimodalLM.from_pretrained(
        tmp_path, decoder=tiny_decoder(), tokenizer=tokenizer, vision=copy.deepcopy(tiny_vision)
    )
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, logits)
    assert "LoRA" in (tmp_path / "README.md").read_text()


def test_lora_of_16_bit_parts_learns_in_32(lora, make_model, tiny_decoder, own_vision, picture):
    model = stirred(make_model(tiny_decoder().bfloat16(), lora=lora, vision=own_vision))
    names = [name for name in model.trained if ".lora_" in name]
    assert names and {model.get_parameter(name).dtype for name in names} == {torch.float32}
    assert model.dtype == torch.bfloat16
    batch = model.processor(picture(1), "What is<image> it?", padding_side="right")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert isinstance(model.generate(picture(1), "What is<image> it?", **GREEDY), str)
    model.merge_lora()
    assert isinstance(model.generate(picture(1), "What is<image> it?", **GREEDY), str)


def test_merged_unmerged_or_cast_it_is_loaded_on_what_it_was_made_with(
    make_model, tiny_decoder, tokenizer, own_vision, tiny_vision, picture, tmp_path
):
    parts = {"tokenizer": tokenizer, "vision": copy.deepcopy(tiny_vision)}
    model = stirred(make_model(lora={"r": 4}))
    batch = model.processor(picture(1), "What is<image> it?")
    with torch.no_grad():
        logits = model(**batch).logits
    model.merge_lora()
    model.unmerge_lora()  # but for rounding
    model.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path, decoder=tiny_decoder(), **parts)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, logits)
    make_model(vision=own_vision).half().save_pretrained(tmp_path)
    MultimodalLM.from_pretrained(tmp_path, decoder=tiny_decoder(), **parts)


def test_frozen_weights_that_were_changed_are_not_passed_over(make_model, tmp_path):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="the decoder weights are not those the model was made with"):
        model.merge_and_unload().save_pretrained(tmp_path)


@pytest.mark.parametrize("ours", [True, False], ids=["lora", "peft"])
def test_low_rank_adapters_drop_out_in_training_alone(ours, make_model, picture):
    settings = {"r": 4, "lora_dropout": 0.5, "target_modules": ["q_proj", "v_proj"]}
    model = make_model(lora=settings) if ours else get_peft_model(make_model(), LoraConfig(**settings))
    own = model if ours else model.get_base_model()
    batch = own.processor(picture(1), "What is<image> it?")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
    training = {name for name, module in own.decoder.named_modules() if module.training}
    assert training and all("lora_" in name or name.endswith(("q_proj", "v_proj")) for name in training)


def test_lora_and_unfreezing_go_together(make_model, own_vision):
    model = make_model(lora={"r": 2}, unfreeze=["decoder.*q_proj.weight", "decoder.*norm*"], vision=own_vision)
    assert "decoder.model.layers.0.self_attn.q_proj.base_layer.weight" in model.trained
    assert any(".lora_A" in name for name in model.trained)


def test_add_adapter_is_lora_later(tiny_model, picture, tmp_path):
    tiny_model.add_adapter(LoraConfig(r=2, target_modules=["v_proj", "q_proj"], lora_alpha=4))
    assert tiny_model.config.lora == {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    assert all(tiny_model.get_parameter(name).requires_grad for name in tiny_model.trained)
    assert any(name.startswith("adapter.") for name in tiny_model.trained)
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["lora"]["r"] == 2
    with pytest.raises(ValueError, match="there can be one LoRA"):
        tiny_model.add_adapter(LoraConfig(r=2))


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="no_such"):
        tiny_model.add_adapter(LoraConfig(r=2, target_modules=["no_such"]))
    assert tiny_model.config.lora is None
    tiny_model.save_pretrained(tmp_path)


def test_merged_into_weights_that_are_trained_it_is_not_saved(make_model, tmp_path):
    model = make_model(lora={"r": 2}, unfreeze=["decoder.*q_proj.weight"])
    model.merge_lora()
    with pytest.raises(ValueError, match="unmerge_lora"):
        model.save_pretrained(tmp_path)
    model.unmerge_lora()
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"rank": 8}, "rank"),
        ({"r": 0}, "r"),
        ({"r": 2, "target_modules": ["no_such"]}, "no_such"),
        ({"r": 2, "target_modules": r"vision\..*norm.*"}, "vision"),
        ({"r": 2, "bias": "all"}, "unfreeze="),
        ({"r": 2, "modules_to_save": ["lm_head"]}, "unfreeze="),
        ({"r": 2, "init_lora_weights": "pissa"}, "gaussian"),
    ],
)
def test_wrong_lora_is_refused_by_name(lora, words, make_model, own_vision):
    with pytest.raises(ValueError, match="lora=") as error:
        make_model(lora=lora, vision=own_vision)
    assert words in str(error.value)


def test_blind_is_not_exact_with_lora_on_the_decoder_and_is_with_lora_on_the_eyes(make_model, own_vision, tiny_decoder):
    batch = make_model().processor(None, "What is it?")
    with torch.no_grad():
        base = tiny_decoder()(**batch).logits
        assert not torch.allclose(stirred(make_model(lora={"r": 2}))(**batch).logits, base, atol=1e-3)
        seeing = stirred(make_model(lora=LORAS["vision"], vision=own_vision))
        assert torch.equal(seeing(**batch).logits, base)
