"""On disk: the adapter and what it was made for, nothing frozen, nothing half-written."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from transformers.utils import hub

from mmlm import store
from mmlm.config import AdapterConfig
from mmlm.model import MultimodalLM


@pytest.fixture
def saved(tiny_model, open_gates, tmp_path):
    open_gates(tiny_model).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def parts(tiny_decoder, tokenizer, tiny_vision):
    return {"decoder": tiny_decoder(), "tokenizer": tokenizer, "vision": tiny_vision}


def load(folder, tiny_decoder, tokenizer, tiny_vision, **fields):
    parts = {"decoder": tiny_decoder(), "tokenizer": tokenizer, "vision": tiny_vision}
    return MultimodalLM.from_pretrained(folder, **parts | fields)


def test_only_the_adapter_is_saved(saved, tiny_model):
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == {f"adapter.{name}" for name in tiny_model.adapter.state_dict()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tiny_model.adapter.state_dict().values())
    assert (saved / "model.safetensors").stat().st_size < size + 20_000


def test_the_config_names_the_frozen_parts(saved, tiny_model):
    config = json.loads((saved / "config.json").read_text())
    assert config["fingerprint"] == tiny_model.config.fingerprint
    assert config["fingerprint"].keys() == {"decoder", "vision"}
    assert config["vision"] == tiny_model.vision.backbones[0].name
    assert config["layers"] == [1, 3, 5]


def test_the_card_names_them_too(tmp_path):
    config = AdapterConfig(decoder="a/decoder", revision="v2", vision="timm/eyes", layers=[3], unfreeze=["vision.*"])
    config.data, config.scores = ["COCO", "my cats"], {"CIDEr": 1.25}
    store.save(tmp_path, config, {"adapter.w": torch.zeros(11, 100)})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ["a/decoder", "eyes"] and card.data.pipeline_tag == "image-text-to-text"
    for words in ("a/decoder", "v2", "timm/eyes", "| 3 |", "1,100", "vision.*", "COCO, my cats", "| CIDEr | 1.250 |"):
        assert words in card.text


@pytest.mark.parametrize(
    ("decoder", "bases"),
    [("", None), ("{here}", None), ("runs/decoder", None), ("me/moe", ["me/moe"]), ("/no/such/folder", None)],
)
def test_the_card_has_a_base_model_where_the_hub_may_have_one(decoder, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "decoder").mkdir(parents=True)
    store.save(tmp_path, AdapterConfig(decoder=decoder.format(here=tmp_path)), {})
    assert ModelCard.load(tmp_path / "README.md").data.base_model == bases


def test_what_is_pushed_is_what_is_saved(tiny_model, monkeypatch):
    commits = []

    class Hub(HfApi):
        """The hub, but for the network."""

        def create_repo(self, repo_id, **kwargs):
            return RepoUrl(f"https://hub/me/{repo_id}", endpoint="https://hub")

        def create_commit(self, repo_id, operations, **kwargs):
            commits.append(
                (repo_id, {file.path_in_repo: Path(file.path_or_fileobj).read_bytes() for file in operations})
            )

    monkeypatch.setattr(hub, "hf_api", Hub)
    tiny_model.push_to_hub("cats", private=True)
    [(repo, files)] = commits
    assert repo == "me/cats" and files.keys() == {"README.md", "model.safetensors", "config.json"}
    assert b"library_name: mmlm" in files["README.md"] and b"Eyes for" in files["README.md"]
    assert load_bytes(files["model.safetensors"]).keys() == tiny_model.saved().keys()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_umasks_mode(umask, tiny_model, tmp_path):
    kept = os.umask(umask)
    try:
        tiny_model.save_pretrained(tmp_path / "run")
    finally:
        os.umask(kept)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {0o666 & ~umask}


def test_saving_again_replaces(saved, tiny_model, open_gates):
    open_gates(tiny_model, 0.1).save_pretrained(saved)
    assert len(os.listdir(saved)) == 3
    assert load_file(saved / "model.safetensors")["adapter.blocks.0.ff_gate"] == torch.tensor(0.1)


def test_training_mode_and_device_do_not_reach_the_disk(saved, tiny_model, tmp_path):
    tiny_model.train().save_pretrained(tmp_path / "again")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_the_same_weights_in_another_dtype_are_the_same(saved, tiny_decoder, tokenizer, tiny_vision):
    low = tiny_decoder().bfloat16()
    again = load(saved, tiny_decoder, tokenizer, tiny_vision, decoder=low)
    assert again.decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("missing", [["model.safetensors"], ["config.json", "model.safetensors"]])
def test_a_folder_without_an_adapter_says_what_is_missing(missing, saved, tiny_decoder, tokenizer, tiny_vision):
    for name in missing:
        (saved / name).unlink()
    with pytest.raises(ValueError, match=f"no saved adapter in it.*{missing[0]}"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_damaged_weights_are_refused(keep, saved, tiny_decoder, tokenizer, tiny_vision):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


def test_a_config_and_weights_of_two_saves_are_refused(saved, tiny_model, open_gates, parts):
    """As a kill between the renames leaves them."""
    old = (saved / "model.safetensors").read_bytes()
    open_gates(tiny_model, 0.1).save_pretrained(saved)
    (saved / "model.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights that config\.json beside it"):
        MultimodalLM.from_pretrained(saved, **parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": {}}, "has no fingerprint of decoder and vision"),
        ({"fingerprint": {"decoder": "abc"}}, "has no fingerprint of decoder and vision"),
        ({"fingerprint": {"decoder": "a", "vision": "b", "more": "c"}}, "has no fingerprint of decoder and vision"),
        ({"layers": [1, 3, 99]}, "layers 0 to 5"),
        ({"layers": None}, "layers=None"),
    ],
    ids=str,
)
def test_damaged_configs_are_refused_by_name(change, words, saved, parts):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words) as error:
        MultimodalLM.from_pretrained(saved, **parts)
    assert str(saved) in str(error.value) and "config.json" in str(error.value)


@pytest.mark.parametrize("change", [{"media_dim": 32}, {"layers": [1, 3]}, {"ff_factor": 1.0}], ids=str)
def test_weights_of_another_shape_are_refused(change, saved, tiny_decoder, tokenizer, tiny_vision):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.json"):
        load(saved, tiny_decoder, tokenizer, tiny_vision)


@pytest.mark.parametrize("name", ["no/such-adapter", "runs/not there", "/no/such/folder"])
def test_a_name_that_is_nowhere_says_how_to_make_one(name):
    with pytest.raises(ValueError, match=f"{name}: no such folder.*mmlm quickstart"):
        MultimodalLM.from_pretrained(name)


def test_a_save_that_fails_leaves_what_was_there(saved):
    kept = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(Exception, match="Contiguous"):
        store.save(saved, AdapterConfig(decoder="other"), {"odd": torch.zeros(2, 2).to_sparse()})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == kept
