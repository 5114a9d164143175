"""A dense decoder upcycled is the dense decoder, until its experts are trained apart."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mmlm.cli import main
from mmlm.decoder import active_parameters
from mmlm.upcycle import check_same, draw_router, upcycle, upcycle_folder

ROOT = Path(__file__).parents[2]
PIN = "4aeb3e38e9a833f08e47a1f36c5304278d12e0652b7823206965d35d4893aabc"  # of a router's bytes
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-4,
}


def dense(kind=LlamaForCausalLM, config=LlamaConfig, **fields):
    torch.manual_seed(0)
    return kind(config(**SIZES | fields)).eval()


@given(st.integers(1, 6), st.data())
@settings(max_examples=12)
def test_the_logits_stay_the_dense_decoders(experts, data):
    source = dense()
    sparse = upcycle(source, experts, top_k=data.draw(st.integers(1, experts)))
    assert check_same(source, sparse) < 1e-3
    assert sparse.config.num_local_experts == experts


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"hidden_act": "gelu"},
        {"num_key_value_heads": 4, "head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=str,
)
def test_kinds_of_llamas_stay_what_they_are(fields):
    assert upcycle(dense(**fields), 3, 2).config.tie_word_embeddings == fields.get("tie_word_embeddings", False)


def test_a_mistral_keeps_its_window():
    source = dense(MistralForCausalLM, MistralConfig, sliding_window=8)
    assert upcycle(source, 2, 1).config.sliding_window == 8


def test_experts_start_equal_and_routers_do_not():
    sparse = upcycle(dense(), 4, 2)
    for layer in sparse.model.layers:
        assert all(torch.equal(expert, layer.mlp.experts.down_proj[0]) for expert in layer.mlp.experts.down_proj)
        assert layer.mlp.gate.weight.std() > 0
        assert len(set(layer.mlp.gate.weight[:, 0].tolist())) == 4
    assert active_parameters(sparse) < sum(p.numel() for p in sparse.parameters())


def test_the_seed_is_of_the_routers_alone():
    source = dense()
    one, same, other = (upcycle(source, 4, 2, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        f"model.layers.{i}.mlp.gate.weight" for i in range(2)
    }


def test_routers_are_the_same_on_every_machine():
    """The default decoder's fingerprint rests on it."""
    router = draw_router(torch.Size((4, 576)), torch.Generator().manual_seed(0))
    assert hashlib.sha256(router.numpy().tobytes()).hexdigest() == PIN


@pytest.mark.slow
def test_routers_are_the_same_without_vector_instructions():
    code = (
        "import torch; from mmlm.upcycle import draw_router;"
        "print(draw_router(torch.Size((4, 576)), torch.Generator().manual_seed(0)).numpy().tobytes().hex())"
    )
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, text=True, capture_output=True, timeout=60)
    assert hashlib.sha256(bytes.fromhex(done.stdout)).hexdigest() == PIN, done.stderr


def test_routers_deviate_by_two_hundredths():
    router = draw_router(torch.Size((8, 4096)), torch.Generator().manual_seed(0))
    assert router.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(router.mean().item()) < 3e-4


@pytest.mark.parametrize(("experts", "top_k"), [(4, 5), (4, 0), (0, 0), (0, 1), (2, -1)])
def test_impossible_numbers_are_refused(experts, top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k}, experts={experts}"):
        upcycle(dense(), experts, top_k)


@pytest.mark.parametrize("fields", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_biases_are_refused(fields):
    with pytest.raises(ValueError, match="without biases"):
        upcycle(dense(**fields), 2, 1)


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="'qwen2' decoder cannot be upcycled"):
        upcycle(dense(Qwen2ForCausalLM, Qwen2Config), 2, 1)


def test_a_decoder_that_is_not_the_same_is_noticed():
    source = dense()
    other = upcycle(source, 2, 1)
    other.model.layers[1].mlp.experts.down_proj.data[0] += 0.01
    with pytest.raises(ValueError, match="the upcycled logits differ"):
        check_same(source, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_upcycled_and_works_in_transformers(dtype, tokenizer, tmp_path):
    dense(tie_word_embeddings=True).to(dtype).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    assert upcycle_folder(tmp_path / "dense", tmp_path / "moe", 3, 2) < 1e-3
    moe = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype="auto")
    assert moe.dtype == dtype and moe.config.model_type == "mixtral" and moe.config.num_local_experts == 3
    check_same(AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32), moe.float())
    assert AutoTokenizer.from_pretrained(tmp_path / "moe").chat_template == tokenizer.chat_template


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "moe").mkdir()
    with pytest.raises(FileExistsError, match="moe: exists already"):
        upcycle_folder(tmp_path / "dense", tmp_path / "moe", 3, 2)


def test_the_verb_upcycles(tokenizer, tmp_path, capsys):
    dense().save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    words = ["upcycle", str(tmp_path / "dense"), str(tmp_path / "moe"), "--experts", "3", "--top-k", "1"]
    assert not main(words)
    assert "3 experts, 1 to a token" in capsys.readouterr().out
    assert main([*words[:2], str(tmp_path / "other"), "--experts", "2", "--top-k", "3"])
    assert "top_k=3, experts=2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
