"""Backbones: any timm network with feature maps, frozen, and shown pixels as it was trained on them."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from vision.backbone import load_backbone

FIXED = ("test_vit3", "test_vit_relpos", "test_maxvit")  # made for pictures of one size alone
STAGED = ("test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "test_mambaout", "test_nfnet")
KINDS = (*STAGED, "test_vit", *FIXED)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (2, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def state(backbone):
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_timm_network_gives_the_maps_that_it_announces(kind, pictures):
    backbone = load_backbone(f"timm/{kind}", pretrained=False)
    maps = backbone(pictures)
    announced = [(one["num_chs"], one["reduction"]) for one in backbone.maps.feature_info]
    assert [tuple(one.shape) for one in maps] == [(2, c, 512 // stride, 512 // stride) for c, stride in announced]
    assert backbone.channels == [channels for channels, _ in announced] and backbone.side == 512
    assert all(one.isfinite().all() for one in maps)


@pytest.mark.parametrize("kind", STAGED)
def test_a_whole_network_gives_the_maps_of_its_features_only_form(kind, pictures):
    """NHWC ones, too: MambaOut's."""
    made = []
    for form in ({}, {"features_only": True}):
        torch.manual_seed(0)
        made.append(timm.create_model(kind, **form))
    whole, maps = made
    maps.load_state_dict(whole.state_dict(), strict=False)  # of the same names, if it has drawn in another order
    same(load_backbone(whole)(pictures), load_backbone(maps)(pictures))


@pytest.mark.parametrize("form", [{}, {"features_only": True}], ids=["whole", "features_only"])
@pytest.mark.parametrize("kind", ["test_resnet", "test_vit3", "test_mambaout"])
def test_maps_are_chosen_by_depth(kind, form, pictures):
    backbone = load_backbone(timm.create_model(kind, **form))
    every = backbone(pictures)
    count = len(every)
    assert count == len(backbone.channels) >= 3
    for depths in ([-1], [-2, -1], [-1, -2], [-count], [-2, -count, -2]):
        some = backbone(pictures, depths)
        assert len(some) == len(depths)
        assert all(one.equal(every[depth]) for one, depth in zip(some, depths, strict=True))


@pytest.mark.parametrize(
    ("kind", "last"), [("test_resnet", "layer4"), ("test_vit", "blocks.5"), ("test_convnext", "stages.3")]
)
def test_what_comes_after_the_deepest_map_chosen_is_not_run(kind, last, pictures):
    backbone = load_backbone(timm.create_model(kind))
    runs = []
    backbone.maps.get_submodule(last).register_forward_hook(lambda *_: runs.append(last))
    backbone(pictures, [-2, -3])
    assert not runs
    backbone(pictures, [-3, -1])
    assert runs == [last]


def test_of_a_named_network_norm_and_classifier_are_not_kept():
    """Without them what is unfrozen is what is run."""
    for kind in ("test_vit", "test_resnet", "test_efficientnet"):
        whole = timm.create_model(kind)
        backbone = load_backbone(f"timm/{kind}", pretrained=False).requires_grad_()
        assert sum(p.numel() for p in backbone.parameters()) < sum(p.numel() for p in whole.parameters())
        maps = backbone(torch.zeros(1, 3, 512, 512, dtype=torch.uint8))
        sum(one.square().sum() for one in maps).backward()
        assert all(p.grad is not None for p in backbone.parameters())


def test_frozen_is_frozen(pictures):
    backbone = load_backbone("timm/test_resnet", pretrained=False)
    before = state(backbone)
    first = backbone(pictures)
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    second = backbone(pictures)
    assert all(one.equal(other) and not one.requires_grad for one, other in zip(first, second, strict=True))
    assert all(tensor.equal(before[name]) for name, tensor in backbone.state_dict().items())


def test_pixels_are_normalized_as_in_training(pictures):
    maps = timm.create_model("test_resnet", features_only=True).eval()
    cfg = maps.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        wanted = maps((pictures / 255 - mean) / std)
    for one, other in zip(load_backbone(maps)(pictures), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_weights_may_be_in_bf16(pictures):
    backbone = load_backbone("timm/test_resnet", pretrained=False)
    wanted = backbone(pictures)[-1]
    backbone.maps.to(torch.bfloat16)
    got = backbone(pictures)[-1]
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() < 0.05 * wanted.norm()


def test_names():
    for form in ({}, {"features_only": True}):
        assert load_backbone(timm.create_model("test_resnet", **form)).name == "module/test_resnet"
    named = load_backbone("timm/test_resnet", pretrained=False)
    assert named.name == "timm/test_resnet"
    assert load_backbone(named) is named


def test_a_folder_is_a_backbone(tmp_path, pictures):
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit3"), tmp_path)
    backbones = [load_backbone(vision) for vision in (tmp_path, str(tmp_path), f"local-dir:{tmp_path}")]
    assert [backbone.name for backbone in backbones] == [str(tmp_path), str(tmp_path), f"local-dir:{tmp_path}"]
    first, *others = [backbone(pictures[:1])[-1] for backbone in backbones]
    assert all(first.equal(other) for other in others)


def test_a_folder_without_a_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"vision='{tmp_path}': .*'local-dir:PATH'"):
        load_backbone(tmp_path)


VIT = {"patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 2, "reg_tokens": 2, "class_token": True}


@pytest.fixture(scope="module")
def patches_of_14(tmp_path_factory):
    """A small DINOv2 for pictures of 98x98, its position embeddings a slope from left to right."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    made = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=98, **VIT)
    with torch.no_grad():
        table = torch.arange(7.0).view(1, 7, 1).expand(7, 7, 32).reshape(1, 49, 32)
        made.pos_embed.copy_(table)
    save_for_hf(made, folder, model_args={**VIT, "img_size": 98})
    return folder, made


def test_a_network_whose_patch_does_not_divide_512_sees_the_nearest_size_that_fits(patches_of_14, pictures):
    folder, made = patches_of_14
    named, built = load_backbone(folder), load_backbone(made)
    assert named.side == built.side == 518
    assert [tuple(one.shape) for one in named(pictures)] == [(2, 32, 37, 37)] * 3
    same(named(pictures), built(pictures))


def test_position_embeddings_are_interpolated(patches_of_14):
    table = load_backbone(patches_of_14[0]).maps.pos_embed.detach()
    assert table.shape == (1, 37 * 37, 32)
    grid = table.view(37, 37, 32)
    torch.testing.assert_close(grid, grid[:1].expand_as(grid), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[0, 12:-12, 0].diff(), torch.full((12,), 7 / 37), rtol=0, atol=1e-4)


WHOLE = [(kind, {}) for kind in FIXED]


@pytest.mark.parametrize(("kind", "form"), [*WHOLE, ("test_vit3", {"features_only": True})])
def test_a_built_network_for_another_size_is_resized(kind, form, pictures):
    backbone = load_backbone(timm.create_model(kind, **form))
    assert all(one.shape[2] in (256, 128, 64, 32, 16) for one in backbone(pictures))
    again = load_backbone(backbone.maps)  # it is as it should be now
    same(again(pictures), backbone(pictures))


def test_a_network_that_takes_its_own_size_alone_sees_the_picture_in_it(tmp_path, pictures):
    """A gMLP mixes the 196 patches of 224x224 by a matrix; of MaxViT's features_only form nobody can resize windows."""
    made = timm.create_model("gmlp_ti16_224")
    save_for_hf(made, tmp_path)
    for vision in (tmp_path, made):
        backbone = load_backbone(vision)
        assert backbone.side == 224
        assert [tuple(one.shape) for one in backbone(pictures)] == [(2, 128, 14, 14)] * 30
    backbone = load_backbone(timm.create_model("test_maxvit", features_only=True))
    assert backbone.side == 160
    assert [one.shape[2] for one in backbone(pictures)] == [80, 40, 20, 10, 5]


def test_a_module_that_refuses_every_size_is_refused():
    fixed = timm.create_model("levit_128s", img_size=256)
    with pytest.raises(ValueError, match=r"module/levit_128s refuses pictures of 512x512 .*img_size=512"):
        load_backbone(fixed)


def test_the_module_says_where_pixels_go():
    backbone = load_backbone(timm.create_model("test_resnet", features_only=True).to("meta"))
    assert backbone.scale.device.type == backbone.shift.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_it_is_as_large(kind):
    backbone = load_backbone(f"timm/{kind}", pretrained=False)
    with torch.device("meta"):
        empty = load_backbone(f"timm/{kind}", pretrained=False)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [p.shape for p in empty.parameters()] == [p.shape for p in backbone.parameters()]
    assert empty.channels == backbone.channels


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Sequential(nn.Conv2d(3, 3, 3))])
def test_a_module_without_feature_maps_is_refused(module):
    with pytest.raises(ValueError, match=f"{type(module).__name__} gives no feature maps.*features_only=True"):
        load_backbone(module)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timm/resnett50", "resnet50"),
        ("efficientnet_lite_0", "efficientnet_lite0"),
        ("timm/resnet50.a1_1k", "resnet50.a1_in1k"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_near(name, meant):
    with pytest.raises(ValueError, match=rf"vision='{name}': .*did you mean .*{meant}.*'timm/resnet50'"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["timm/test_resnet", "hf-hub:nobody/nothing", "local-dir:nowhere"])
def test_weights_that_cannot_be_had_are_told_with_the_mend(name):
    """The tests run without the hub."""
    with pytest.raises(ValueError, match=rf"(?s)vision='{name}': .*'local-dir:PATH'") as told:
        load_backbone(name)
    assert "did you mean" not in str(told.value)
