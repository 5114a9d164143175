"""What is told of a model is what it is: counted without weights, checked against models that have them."""

import time

import pytest
import timm
import torch
from parts import media_of
from timm.models import save_for_hf
from transformers import MixtralConfig

from mmlm import cli, zoo
from mmlm.config import AdapterConfig
from mmlm.info import count, inspect, report, scaled, shipped
from mmlm.model import MultimodalLM
from vision.features import FeatureCache
from vision.pyramid import TOKENS


@pytest.fixture
def folder(tiny_decoder, tokenizer, tmp_path):
    """A decoder on disk."""
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    return str(tmp_path / "decoder")


def test_the_rumour_is_as_large_as_it_is_said_to_be(capsys):
    started = time.monotonic()
    info = inspect("gpt4-rumour")
    assert time.monotonic() - started < 30
    assert 1.75e12 < info.total < 1.9e12
    assert 2.7e11 < info.active < 2.95e11
    config = info.decoder.config
    assert isinstance(config, MixtralConfig)
    assert (config.num_hidden_layers, config.num_local_experts, config.num_experts_per_tok) == (120, 16, 2)
    assert config.num_key_value_heads == 1
    assert cli.main(["info", "gpt4-rumour", "--every", "8"]) == 0
    said = capsys.readouterr().out
    assert "1.83T" in said and "120 layers" in said and "16 experts, 2 to a token" in said
    assert "before layers 0, 8, 16" in said


def test_counts_are_those_of_the_model_itself(folder, make_model, tiny_decoder):
    model = make_model(tiny_decoder(), layers=[1, 3])
    info = inspect(folder, vision="timm/test_efficientnet", layers=[1, 3])
    assert count(info.decoder) == count(model.decoder)
    assert count(info.parts["adapter"]) == count(model.adapter)
    assert info.config.channels == model.config.channels
    dense = sum(p.numel() for name, p in model.decoder.named_parameters() if ".experts." not in name)
    routed = count(model.decoder) - dense
    assert info.active == dense + routed // 2 + count(model.adapter.blocks), "the media are projected once an image"


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_media_cost_what_is_told_of_them(tokens, folder, make_model, tiny_decoder, picture, tmp_path):
    """For images without padding, all of it: the cache's file has a header besides."""
    info = inspect(folder, vision="timm/test_efficientnet", layers=[1, 3], tokens=tokens)
    model = make_model(tiny_decoder(), layers=[1, 3], tokens=tokens)
    assert count(info.parts["adapter"]) == count(model.adapter)
    cache = FeatureCache(model.vision, tmp_path)
    image = picture(1, (512, 512))
    embeddings, seen, kept = info.media(512, 512)
    view = model.view(dict(media_of(model.processor(image, "What?"))))
    keys = [tensor for block in (0, 1) for tensor in view.keys_values(block)]
    assert embeddings == 255 == len(view.media)
    assert seen == 2 * sum(tensor.numel() for tensor in keys)
    assert 0 <= cache.size(cache.add(image)) - kept < 1000
    assert f"{tokens}: " in report(info)


def test_what_a_resampler_is_is_told(capsys):
    assert cli.main(["info", "gpt4-rumour", "--every", "8", "--tokens", "resampler"]) == 0
    said = capsys.readouterr().out
    assert "85 read an overview's 256 + 64 cells, 170 a tile's 256 + 256" in said and "2 layers" in said
    assert cli.main(["info", "gpt4-rumour", "--tokens", "resample"]) == 1
    assert "tokens='resample': one of pyramid, square, seven, triple, resampler" in capsys.readouterr().err


def test_a_saved_adapter_is_told_of(folder, tmp_path, capsys):
    save_for_hf(timm.create_model("test_efficientnet"), tmp_path / "eyes")
    model = MultimodalLM.from_parts(decoder=folder, vision=tmp_path / "eyes", layers=[0, 5], kv_heads=1)
    model.save_pretrained(tmp_path / "run")
    assert cli.main(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for words in (folder, "MixtralForCausalLM", "2 gated blocks before layers 0, 5", "(1 for keys and values)"):
        assert words in said
    assert "4 experts, 2 to a token" in said and "512x512" in said and "255" in said and "1105" in said
    assert cli.main(["info", str(tmp_path / "run"), "--every", "2"]) == 1
    assert "a saved adapter has its own every; leave them out" in capsys.readouterr().err


def test_what_else_is_trained_is_told(folder, tmp_path, capsys):
    save_for_hf(timm.create_model("test_efficientnet"), tmp_path / "eyes")
    more = {"lora": {"r": 4}, "unfreeze": ["vision.*conv_stem*"]}
    model = MultimodalLM.from_parts(decoder=folder, vision=tmp_path / "eyes", **more)
    model.save_pretrained(tmp_path / "run")
    assert cli.main(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "frozen but for LoRA of rank 4" in said and "frozen but for 1 of its tensors unfrozen" in said
    assert "NOT exact" in said
    info = inspect(str(tmp_path / "run"))
    assert info.trained == model.trained
    assert sum(map(info.learnt, info.parts)) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "NOT exact" not in report(inspect(folder, vision=f"local-dir:{tmp_path / 'eyes'}", unfreeze=["vision.*"]))


@pytest.mark.parametrize("name", ["nowhere/at-all", "gpt4-rumor"])
def test_what_is_no_model_is_refused(name, capsys):
    assert cli.main(["info", name]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"mmlm: {name}: no config of a decoder or a saved adapter") and "gpt4-rumour" in said


@pytest.mark.parametrize("name", ["runs/nope", "./nope", "/nope/nope"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name, capsys):
    assert cli.main(["info", name]) == 1
    assert capsys.readouterr().err.startswith(f"mmlm: {name}: no such folder")


def test_the_file_is_as_large_as_is_told(folder, make_model, tiny_decoder, tmp_path):
    info, model = (
        inspect(folder, vision="timm/test_efficientnet", layers=[1, 3]),
        make_model(tiny_decoder(), layers=[1, 3]),
    )
    told = 4 * (sum(map(info.learnt, info.parts)) + info.fitted)
    assert told == sum(tensor.nbytes for tensor in model.saved().values())


def test_the_shipped_configurations_are_all_of_decoders():
    assert list(shipped()) == ["gpt4-rumour"]
    assert isinstance(inspect("gpt4-rumour", every=60).config, AdapterConfig)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (999.6, "1K"), (1234, "1.23K"), (1.827e12, "1.83T"), (5e15, "5e+03T")]
)
def test_numbers_have_three_digits(number, said):
    assert scaled(number, ("", "K", "M", "B", "T")) == said


@pytest.mark.slow
def test_the_default_is_told_of(capsys):
    info = inspect(zoo.DECODER)
    assert 3.7e8 < info.total < 4.0e8 and count(info.parts["vision"]) < 4e6
    assert "mmlm/smollm2-135m-moe-4x2" in report(info)


def test_no_weights_are_made():
    assert {p.device for p in inspect("gpt4-rumour").parts.parameters()} == {torch.device("meta")}
