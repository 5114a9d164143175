"""open_clip's image towers: by name or built, the tower alone, with weights from a folder or a file."""

import gc
import json
import logging
import weakref

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vision.backbone import load_backbone

TEXT = {"layers": 1, "width": 16, "heads": 1, "vocab_size": 16, "context_length": 4}
SMALL = {  # each kind of tower, as small as it can be, for pictures of 64x64 or 98x98
    "vit": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "vit14": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 14, "image_size": 98},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None, "image_size": 64},
    "convnext": {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 64},
    "siglip": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
}
SIDES = {"vit14": 518}
MAPS = {
    "vit": [(32, 32)] * 4,
    "vit14": [(32, 37)] * 4,
    "resnet": [(8, 128), (32, 128), (64, 64), (128, 32), (256, 16)],
    "convnext": [(24, 128), (32, 64), (48, 32), (64, 16)],
    "siglip": [(64, 32)] * 6,
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def small(kind, **more):
    """A small random CLIP, nothing of it zero."""
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=SMALL[kind], text_cfg=TEXT, **more)
    with torch.no_grad():
        for name, weight in model.visual.named_parameters():
            if name.endswith("bn3.weight"):  # with which branches begin at nothing
                weight.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (2, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(request, tmp_path):
    """A model as open_clip keeps them: (folder, kind of its tower)."""
    kind = getattr(request, "param", "vit")
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": SMALL[kind], "text_cfg": TEXT, "custom_text": True},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(small(kind).state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path, kind


def same(some, others):
    assert len(some) == len(others)
    assert all(one.equal(other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("kind", SMALL)
def test_any_built_model_is_a_backbone_and_so_is_its_tower(kind, pictures):
    model = load_backbone(small(kind))
    assert model.side == SIDES.get(kind, 512)
    maps = model(pictures)
    assert [tuple(one.shape) for one in maps] == [(2, width, side, side) for width, side in MAPS[kind]]
    assert all(one.isfinite().all() and one.std() > 0 for one in maps)
    assert model.channels == [width for width, _ in MAPS[kind]]
    assert model.name.startswith("module/")
    same(load_backbone(small(kind).visual)(pictures), maps)
    for depths in ([-1], [-2, -3], [-1, -4]):
        same(model(pictures, depths), [maps[depth] for depth in depths])


@pytest.mark.parametrize(("kind", "last"), [("vit", "transformer.resblocks.3"), ("resnet", "layer4")])
def test_what_comes_after_the_deepest_map_chosen_is_not_run(kind, last, pictures):
    backbone = load_backbone(small(kind))
    runs = []
    backbone.maps.get_submodule(last).register_forward_hook(lambda *_: runs.append(last))
    backbone(pictures, [-2, -3])
    assert not runs
    backbone(pictures, [-1])
    assert runs == [last]


@pytest.mark.parametrize("make", [open_clip.CLIP, open_clip.CoCa])
def test_so_are_other_classes_of_models(make, pictures):
    more = {} if make is open_clip.CLIP else {"multimodal_cfg": TEXT | {"layers": 1}}
    vision = SMALL["vit"] | ({"attentional_pool": True, "output_tokens": True} if more else {})
    backbone = load_backbone(make(embed_dim=16, vision_cfg=vision, text_cfg=TEXT, **more))
    assert [tuple(one.shape) for one in backbone(pictures)] == [(2, 32, 32, 32)] * 4


def test_the_image_tower_alone_is_kept():
    model = small("vit")
    text = weakref.ref(model.text)
    backbone = load_backbone(model)
    assert not any("text" in name or "logit" in name for name in backbone.state_dict())
    del model
    gc.collect()
    assert text() is None


def test_position_embeddings_are_interpolated():
    model = small("vit")
    table = model.visual.positional_embedding
    with torch.no_grad():
        table[1:] = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 32).reshape(16, 32)  # a slope from top to bottom
    token = table[0].clone()
    wide = load_backbone(model).maps.positional_embedding
    assert wide.shape == (1 + 32 * 32, 32) and not wide.requires_grad
    assert wide[0].equal(token)
    grid = wide[1:].view(32, 32, 32)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[12:-12, 0, 0].diff(), torch.full((7,), 1 / 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("folder", SMALL, indirect=True)
def test_a_folder_is_a_backbone_with_its_own_mean_and_std(folder, pictures):
    path, kind = folder
    name = f"open_clip:local-dir:{path}"
    backbone = load_backbone(name)
    assert backbone.name == name
    built = small(kind)
    open_clip.set_model_preprocess_cfg(built, {"mean": MEAN, "std": STD})
    same(backbone(pictures), load_backbone(built)(pictures))
    other = load_backbone(small(kind))  # of OpenAI's mean and std
    assert not backbone(pictures)[0].equal(other(pictures)[0])
    torch.testing.assert_close(other.scale.flatten() * 255, 1 / torch.tensor(open_clip.OPENAI_DATASET_STD))
    same([load_backbone(name)(pictures)[-1]], [backbone(pictures)[-1]])
    with torch.device("meta"):
        empty = load_backbone(name, pretrained=False)
    assert [(n, p.shape) for n, p in empty.named_parameters()] == [(n, p.shape) for n, p in backbone.named_parameters()]
    assert empty.channels == backbone.channels


@pytest.mark.parametrize("folder", SMALL, indirect=True)
def test_of_a_named_tower_pooling_norm_and_projection_are_not_kept(folder, pictures):
    """Without them what is unfrozen is what is run."""
    backbone = load_backbone(f"open_clip:local-dir:{folder[0]}").requires_grad_()
    sum(one.square().sum() for one in backbone(pictures[:1])).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A small model that open_clip knows by name, and a checkpoint of it."""
    for name in ("tiny-ViT", "tiny-RN"):
        config = {"embed_dim": 16, "vision_cfg": SMALL["vit" if "ViT" in name else "resnet"], "text_cfg": TEXT}
        (tmp_path / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(16, SMALL["vit"], TEXT).state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path)
    return tmp_path


def test_a_name_and_a_checkpoint(known, pictures):
    name = f"open_clip:tiny-ViT/{known / 'weights.pt'}"
    backbone = load_backbone(name)
    torch.manual_seed(0)
    same(backbone(pictures), load_backbone(open_clip.CLIP(16, SMALL["vit"], TEXT))(pictures))
    assert backbone.name == name


def test_a_tag_has_its_own_mean_std_and_activation(known, pictures, monkeypatch):
    """As OpenAI's weights need QuickGELU, whatever the model's config says."""
    cfg = {"file": str(known / "weights.pt"), "mean": MEAN, "std": STD, "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ViT", {"mine": cfg})
    torch.manual_seed(0)
    wanted = open_clip.CLIP(16, SMALL["vit"], TEXT, quick_gelu=True)
    open_clip.set_model_preprocess_cfg(wanted, {"mean": MEAN, "std": STD})
    same(load_backbone("open_clip:tiny-ViT/mine")(pictures), load_backbone(wanted)(pictures))
    with pytest.raises(ValueError, match=r"no weights 'mime' of open_clip's tiny-ViT: did you mean mine\?"):
        load_backbone("open_clip:tiny-ViT/mime")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "pure_bf16"])
@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
def test_weights_may_be_in_16_bits(kind, precision, known, pictures):
    """As open_clip makes them: norms and tables may then be in fp32."""
    if kind == "convnext":
        model = small(kind).to(torch.float16 if precision == "fp16" else torch.bfloat16)
    else:
        model = open_clip.create_model("tiny-ViT" if kind == "vit" else "tiny-RN", precision=precision)
    backbone = load_backbone(model)
    half = [one.dtype for one in backbone(pictures)]
    assert set(half) == {torch.float16 if precision == "fp16" else torch.bfloat16}


@pytest.mark.parametrize("folder", SMALL, indirect=True)
def test_bf16_gives_nearly_the_same(folder, pictures):
    backbone = load_backbone(f"open_clip:local-dir:{folder[0]}")
    wanted = backbone(pictures)[-1]
    got = backbone.to(torch.bfloat16)(pictures)[-1]
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "open_clip:ViT-B-16/laion2b_s34b_b88",
            "no weights .* of open_clip's ViT-B-16: did you mean laion2b_s34b_b88k",
        ),
        ("open_clip:ViT-B-16", "no weights '' of open_clip's ViT-B-16; there are openai, .*a checkpoint of yours"),
        ("open_clip:ViTB16/openai", r"open_clip has no model 'ViTB16': did you mean .*ViT-B-16.*\?; name one, as"),
        ("open_clip:", "open_clip has no model ''; name one, as 'open_clip:ViT-B-16/laion2b_s34b_b88k'"),
        ("open_clip:local-dir:nowhere", "not found: nowhere; .*'open_clip:local-dir:PATH'"),
        ("open_clip:hf-hub:nobody/nothing", "Failed.*'open_clip:local-dir:PATH'"),
        ("open_clip:ViT-B-16/openai", "Failed.*where there is a network.*'open_clip:ViT-B-16/PATH'"),
    ],
)
def test_what_cannot_be_had_is_told_once_with_the_mend(name, words, caplog):
    """The tests run without the hub."""
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=rf"(?s)^vision='{name}': .*{words}"):
        load_backbone(name)
    assert not caplog.records


def test_a_checkpoint_of_another_model_is_refused(known):
    with pytest.raises(ValueError, match=r"(?s)vision='open_clip:tiny-RN/.*weights\.pt': .*tiny-RN/PATH"):
        load_backbone(f"open_clip:tiny-RN/{known / 'weights.pt'}")
