"""On disk: the adapter and what it was made for, nothing frozen, nothing half-written."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from mmlm import store
from mmlm.config import AdapterConfig
from mmlm.model import MultimodalLM


@pytest.fixture
def saved(tiny_model, open_gates, tmp_path):
    open_gates(tiny_model).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def load(folder, tiny_decoder, tokenizer, tiny_vision, **fields):
    parts = {"decoder": tiny_decoder(), "tokenizer": tokenizer, "vision": tiny_vision}
    return MultimodalLM.from_pretrained(folder, **parts | fields)


def test_only_the_adapter_is_saved(saved, tiny_model):
    assert sorted(os.listdir(saved)) == ["README.md", "adapter.safetensors", "adapter_config.json"]
    weights = load_file(saved / "adapter.safetensors")
    assert weights.keys() == tiny_model.adapter.state_dict().keys()
    assert not weights.keys() & (tiny_model.decoder.state_dict().keys() | tiny_model.vision.state_dict().keys())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tiny_model.adapter.state_dict().values())
    assert (saved / "adapter.safetensors").stat().st_size < size + 20_000


def test_the_config_names_the_frozen_parts(saved, tiny_model):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["fingerprint"] == tiny_model.fingerprint()
    assert config["fingerprint"].keys() == {"decoder", "vision"}
    assert config["vision"] == tiny_model.vision.backbone.name
    assert config["layers"] == [1, 3, 5]


def test_the_card_names_them_too(tmp_path):
    store.save(tmp_path, AdapterConfig(decoder="a/decoder", vision="timm/eyes", layers=[3]), torch.nn.Linear(10, 100))
    card = (tmp_path / "README.md").read_text()
    assert "base_model: a/decoder\n" in card and "timm/eyes" in card and "[3]" in card and "1,100" in card


def test_saving_again_replaces(saved, tiny_model, open_gates):
    open_gates(tiny_model, 0.1).save_pretrained(saved)
    assert len(os.listdir(saved)) == 3
    assert load_file(saved / "adapter.safetensors")["blocks.0.ff_gate"] == torch.tensor(0.1)


def test_training_mode_and_device_do_not_reach_the_disk(saved, tiny_model, tmp_path):
    tiny_model.train().save_pretrained(tmp_path / "again")
    for file in ("adapter.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_the_same_weights_in_another_dtype_are_the_same(saved, tiny_decoder, tokenizer, tiny_vision):
    low = tiny_decoder().bfloat16()
    again = load(saved, tiny_decoder, tokenizer, tiny_vision, decoder=low)
    assert again.decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("missing", [["adapter.safetensors"], ["adapter_config.json", "adapter.safetensors"]])
def test_a_folder_without_an_adapter_says_what_is_missing(missing, saved, tiny_decoder, tokenizer, tiny_vision):
    for name in missing:
        (saved / name).unlink()
    with pytest.raises(ValueError, match=f"no saved adapter in it.*{missing[0]}"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_damaged_weights_are_refused(keep, saved, tiny_decoder, tokenizer, tiny_vision):
    path = saved / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"adapter\.safetensors: damaged"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


@pytest.mark.parametrize("change", [{"media_dim": 32}, {"layers": [1, 3]}, {"ff_factor": 1.0}], ids=str)
def test_weights_of_another_shape_are_refused(change, saved, tiny_decoder, tokenizer, tiny_vision):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"adapter\.safetensors does not fit adapter_config\.json"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


@pytest.mark.parametrize("name", ["no/such-adapter", "runs/not there", "/no/such/folder"])
def test_a_name_that_is_nowhere_says_how_to_make_one(name):
    with pytest.raises(ValueError, match=f"{name}: no such folder.*mmlm quickstart"):
        MultimodalLM.from_pretrained(name)


def test_a_save_that_fails_leaves_what_was_there(saved):
    kept = {path.name: path.read_bytes() for path in saved.iterdir()}
    broken = torch.nn.Module()
    broken.register_buffer("odd", torch.zeros(2, 2).to_sparse())
    with pytest.raises(Exception, match="Contiguous"):
        store.save(saved, AdapterConfig(decoder="other"), broken)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == kept
