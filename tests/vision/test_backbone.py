"""Backbones: any timm network with feature maps, frozen, and shown pixels as it was trained on them."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from vision.backbone import Backbone, load_backbone

FIXED = ("test_vit3", "test_vit_relpos", "test_maxvit")  # made for pictures of one size alone
KINDS = ("test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "test_mambaout", "test_vit", *FIXED)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (2, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def state(backbone):
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_any_timm_network_gives_the_maps_that_it_announces(kind, pictures):
    backbone = load_backbone(f"timm/{kind}", pretrained=False)
    maps = backbone(pictures)
    assert [tuple(one.shape) for one in maps] == [
        (2, channels, 512 // stride, 512 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == sorted(backbone.strides)
    assert all(one.isfinite().all() for one in maps)


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
    module = timm.create_model("test_resnet", features_only=True)
    assert load_backbone(module).name == "module/test_resnet"
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


def test_a_module_that_refuses_tiles_is_refused():
    fixed = timm.create_model("test_vit3", features_only=True)
    with pytest.raises(ValueError, match=r"module/test_vit3 refuses pictures of 512x512 .*img_size=512"):
        load_backbone(fixed)


def test_the_module_says_where_pixels_go():
    backbone = load_backbone(timm.create_model("test_resnet", features_only=True).to("meta"))
    assert backbone.scale.device.type == backbone.shift.device.type == "meta"


@pytest.mark.parametrize("module", [nn.Linear(3, 3), timm.create_model("test_resnet")])
def test_a_module_without_feature_maps_is_refused(module):
    with pytest.raises(ValueError, match=f"{type(module).__name__} gives no feature maps.*features_only=True"):
        load_backbone(module)
    with pytest.raises(ValueError, match="gives no feature maps"):
        Backbone(module, (0.5,) * 3, (0.5,) * 3, "mine")


@pytest.mark.parametrize("name", ["timm/no_such_network", "no_such_network"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"vision='{name}': .*no_such_network.*'timm/resnet50'"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["timm/test_resnet", "hf-hub:nobody/nothing", "local-dir:nowhere"])
def test_weights_that_cannot_be_had_are_told_with_the_mend(name):
    """The tests run without the hub."""
    with pytest.raises(ValueError, match=rf"(?s)vision='{name}': .*'local-dir:PATH'"):
        load_backbone(name)
