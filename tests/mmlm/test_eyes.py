"""Two backbones at once: an open_clip tower for what is there, a CNN for where it is."""

import json
from functools import partial

import open_clip
import pytest
import timm
import torch
from parts import logits
from safetensors.torch import save_file
from timm.models import save_for_hf

from mmlm import cli
from mmlm.info import count, inspect
from mmlm.model import MultimodalLM
from vision.encoder import VisionEncoder
from vision.features import FeatureCache, settings_key
from vision.pyramid import parse_tokens

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 6, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "text_cfg": {"layers": 1, "width": 16, "heads": 1, "vocab_size": 16, "context_length": 4},
}
MINE = {"tile": [[1, -1, 0], [5, -6, 0], [12, -3, 1]], "overview": [[1, -1], [2, -6], [4, -6], [8, -3, 1]]}


def clip(seed=0):
    torch.manual_seed(seed)
    return open_clip.CLIP(**CLIP)


def cnn(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("test_efficientnet", drop_path_rate=0.0)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Both on disk: what loads them."""
    folder = tmp_path_factory.mktemp("eyes")
    save_for_hf(cnn(), folder / "cnn")
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}), encoding="utf-8")
    save_file(clip().state_dict(), folder / "clip" / "open_clip_model.safetensors")
    return [f"open_clip:local-dir:{folder / 'clip'}", str(folder / "cnn")]


@pytest.fixture
def reload(tiny_decoder, tokenizer):
    return partial(MultimodalLM.from_pretrained, decoder=tiny_decoder(), tokenizer=tokenizer)


@pytest.fixture
def batch(picture):
    def make(model, seed=1):
        return model.processor(picture(seed), "What is<image> it?")

    return make


@pytest.mark.parametrize("tokens", ["pyramid", "triple", MINE], ids=["pyramid", "triple", "mine"])
def test_a_mixture_is_saved_by_name_and_loaded(tokens, names, make_model, open_gates, reload, batch, tmp_path):
    model = open_gates(make_model(vision=names, tokens=tokens))
    assert model.config.vision == names
    assert [backbone.name for backbone in model.vision.backbones] == names
    assert model.config.channels == model.vision.channels
    assert not torch.equal(logits(model, batch(model, 1)), logits(model, batch(model, 2)))
    model.save_pretrained(tmp_path)
    again = reload(tmp_path)
    assert again.config == model.config
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))


def test_coarse_levels_are_of_the_first_and_the_fine_grid_of_the_second(names, make_model, picture):
    model = make_model(vision=names)
    assert [level.backbone for level in model.vision.pyramid.tile] == [0, 0, 1]
    features = model.vision.encode(picture(size=(512, 512)))
    fine = features.values[-1]
    assert [(len(value), value.shape[1]) for value in features.values] == [(1 + 4 + 16 + 1 + 25, 32), (64 + 144, 48)]
    alone = VisionEncoder(model.vision.backbones[1], parse_tokens("pyramid")).encode(picture(size=(512, 512)))
    assert fine.equal(alone.values[-1])


def test_built_modules_are_saved_and_have_to_be_given_again(make_model, open_gates, reload, batch, tmp_path):
    model = open_gates(make_model(vision=[clip(), cnn()], tokens=MINE))
    assert model.config.vision == ["module/VisionTransformer", "module/test_efficientnet"]
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"on built parts.*pass vision="):
        reload(tmp_path)
    again = reload(tmp_path, vision=[clip(), cnn()])
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))
    for others in ([clip(1), cnn()], [clip(), cnn(1)]):
        with pytest.raises(ValueError, match="other vision weights than those loaded"):
            reload(tmp_path, vision=others)
    with pytest.raises(ValueError, match=r"other vision weights|feature map"):
        reload(tmp_path, vision=[cnn(), clip()])


def test_a_built_module_that_gives_other_maps_is_refused(make_model, reload, tmp_path):
    first, other = (timm.create_model("test_resnet", features_only=True, out_indices=(n, 4)) for n in (3, 2))
    other.load_state_dict(first.state_dict())
    make_model(vision=first).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained on feature maps of"):
        reload(tmp_path, vision=other)


def test_the_feature_cache_holds_both(names, make_model, picture, tmp_path):
    encoder = make_model(vision=names, tokens=MINE).vision
    cache = FeatureCache(encoder, tmp_path)
    kept, fresh = cache.load(cache.add(picture())), encoder.encode(picture())
    assert len(kept.values) == 3
    for one, other in zip(kept.values + kept.places, fresh.values + fresh.places, strict=True):
        assert one.equal(other)
    keys = [settings_key(encoder)]
    for parts in ([clip(1), cnn()], [clip(), cnn(1)], [clip(), cnn()]):
        other = make_model(vision=parts, tokens=MINE).vision
        for backbone, name in zip(other.backbones, names, strict=True):
            backbone.name = name
        keys.append(settings_key(other))
    assert len(set(keys[:3])) == 3


def test_either_can_be_unfrozen(make_model, open_gates, batch):
    for number in (0, 1):
        model = open_gates(make_model(vision=[clip(), cnn()], unfreeze=[f"vision.backbones.{number}.*"])).train()
        mine = {name for name in model.trained if name.startswith("vision.")}
        assert mine == {name for name, _ in model.named_parameters() if name.startswith(f"vision.backbones.{number}.")}
        assert not any(module.training for module in model.vision.backbones.modules())
        model(**batch(model)).logits.square().mean().backward()
        grads = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("vision.")}
        assert grads and grads <= mine


@pytest.mark.parametrize(
    ("fine", "words"),
    [
        ([12, -7], "feature map -7, but module/VisionTransformer has 6 maps"),
        ([12, -6, 1], "feature map -6, but module/test_efficientnet has 5 maps"),
        ([12, -2], "no level is of module/test_efficientnet: leave it out of vision="),
    ],
)
def test_levels_that_do_not_fit_are_refused_by_name(fine, words, make_model):
    with pytest.raises(ValueError, match=f"tokens: .*{words}"):
        make_model(vision=[clip(), cnn()], tokens={"tile": [[1, -1], [5, -1], fine]})


def test_no_eyes_are_refused(make_model):
    with pytest.raises(ValueError, match=r"vision=\[\]: takes a backbone"):
        make_model(vision=[])


def test_a_third_one_without_a_level_is_refused(make_model):
    with pytest.raises(ValueError, match="no level is of module/test_resnet: leave it out of vision="):
        make_model(vision=[clip(), cnn(), timm.create_model("test_resnet")])


def test_info_counts_a_mixture_without_weights(names, make_model, tiny_decoder, tmp_path, capsys):
    tiny_decoder().save_pretrained(tmp_path)
    model = make_model(vision=names, layers=[1, 3])
    info = inspect(str(tmp_path), names, layers=[1, 3])
    assert [count(one) for one in info.parts["vision"].backbones] == [count(one) for one in model.vision.backbones]
    assert info.config.channels == model.config.channels and info.config.vision == names
    assert {p.device.type for p in info.parts.parameters()} == {"meta"}
    one = ["--vision", "open_clip:RN50/openai"]
    capsys.readouterr()
    for eyes, said in ((one, "open_clip:RN50/openai, frozen"), ([*one, "--vision", names[1]], f"openai, {names[1]}")):
        assert cli.main(["info", str(tmp_path), *eyes]) == 0
        printed = capsys.readouterr()
        assert said in printed.out and not printed.err
    assert cli.main(["info", str(tmp_path), "--vision", "open_clip:RN51/openai"]) == 1
    assert "did you mean RN50" in capsys.readouterr().err
