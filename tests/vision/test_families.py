"""Networks of every kind that people take as eyes, small and random, give 170 embeddings a tile, each of its place.

Beside that a survey of all that timm and open_clip have, built without weights: `make backbones` writes its table.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from survey import CANNOT, families, survey, table
from timm.models import save_for_hf

from vision.backbone import load_backbone
from vision.encoder import VisionEncoder
from vision.pyramid import TOKENS, parse_tokens

TABLE = Path(__file__).parents[2] / "docs" / "backbones.md"
VIT = {"embed_dim": 48, "depth": 4, "num_heads": 3}
STAGES = {"depths": (1, 1, 1, 1)}
FAMILIES = {  # the smallest real network of each, shrunk where its constructor lets itself be told
    "EfficientNet": ("test_efficientnet", {}),
    "ResNet": ("resnet10t", {"channels": (16, 24, 32, 48), "stem_width": 8}),
    "ConvNeXt": ("convnext_atto", STAGES | {"dims": (16, 24, 32, 48)}),
    "RegNet": ("regnetx_002", {}),
    "MobileNet": ("mobilenetv3_small_050", {}),
    "ViT": ("vit_tiny_patch16_224", VIT),
    "DeiT": ("deit_tiny_distilled_patch16_224", VIT),
    "Swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}),
    "EVA": ("eva02_tiny_patch14_224", VIT),
    "SigLIP": ("vit_base_patch16_siglip_224", VIT),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", VIT | {"img_size": 98}),
    "DINOv3": ("vit_small_patch16_dinov3", VIT),
    "Hiera": ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "MambaOut": ("test_mambaout", {}),
    "MobileNetV4": ("mobilenetv4_conv_small_050", {}),
    "StarNet": ("starnet_s050", {}),
    "BEiT": ("beit_base_patch16_224", VIT),
    "CoAtNet": ("test_coatnet", {}),
    "NFNet": ("test_nfnet", {}),
}
SLOW = ("BEiT", "CoAtNet", "NFNet")
ANY_SIZE = {"EfficientNet", "ResNet", "ConvNeXt", "RegNet", "MobileNet", "MambaOut", "MobileNetV4", "StarNet", "NFNet"}
ANY_SIZE |= {"open_clip ConvNeXt", "open_clip ModifiedResNet"}
TOWERS = {
    "open_clip ViT": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "open_clip ConvNeXt": {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 64},
    "open_clip ModifiedResNet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 64},
}
TEXT = {"layers": 1, "width": 16, "heads": 1, "vocab_size": 16, "context_length": 4}
SPOT = 64  # pixels on a side
CORNERS = {(x, y): (x * (512 - SPOT), y * (512 - SPOT)) for x in (0, 1) for y in (0, 1)}


@torch.no_grad()
def stirred(network):
    """Nothing in it is one or zero, as branches, norms and biases are at first."""
    for weight in network.parameters():
        if weight.ndim < 2:
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return network


def chosen():
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*FAMILIES, *TOWERS)]


@pytest.fixture(scope="module", params=chosen())
def backbone(request, tmp_path_factory):
    """Of weights in a folder, made for smaller pictures as real ones are."""
    folder = tmp_path_factory.mktemp("eyes")
    torch.manual_seed(0)
    if request.param in FAMILIES:
        kind, shrunk = FAMILIES[request.param]
        save_for_hf(stirred(timm.create_model(kind, **shrunk)), folder, model_args=shrunk)
        return load_backbone(folder)
    model = {"embed_dim": 16, "vision_cfg": TOWERS[request.param], "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}), encoding="utf-8")
    save_file(stirred(open_clip.CLIP(**model)).state_dict(), folder / "open_clip_model.safetensors")
    return load_backbone(f"open_clip:local-dir:{folder}")


def noise(seed, width=512):
    """An image without padding, of which every patch is another."""
    patches = np.random.default_rng(seed).integers(0, 256, (32, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, 512), Image.Resampling.NEAREST)


def values_at(features, slots):
    """Embeddings of these slots, in order, by the map they are of: those of the map that has the first one."""
    value, place = next((v, p) for v, p in zip(features.values, features.places, strict=True) if slots[0] in p[:, 0])
    return value[[(place[:, 0] == slot).nonzero().item() for slot in slots]]


@pytest.mark.parametrize("tokens", TOKENS)
def test_170_embeddings_a_tile_and_85_an_overview(tokens, backbone):
    """Or as many cells as a resampler makes them of; that it does: tests/mmlm/test_resampler.py."""
    encoder = VisionEncoder(backbone, parse_tokens(tokens))
    features = encoder.encode(noise(0))
    slots = torch.cat([places[:, 0] for places in features.places])
    overview, tile = encoder.pyramid.cells
    assert (overview, tile) == (85, 170) or encoder.pyramid.resampled
    assert sorted(slots.tolist()) == list(range(overview + tile))
    assert [value.shape[1] for value in features.values] == encoder.channels
    for value in features.values:
        assert value.isfinite().all() and not value.requires_grad
        assert len(value) == 1 or value.std(0).max() > 0, "every cell is the same"


def test_frozen_and_deterministic(backbone):
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    encoder = VisionEncoder(backbone).train()
    assert not any(
        module.training for module in encoder.modules() if module is not encoder and module is not encoder.backbones
    )
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    one, other = (encoder.encode(noise(0)) for _ in range(2))
    assert all(mine.equal(yours) for mine, yours in zip(one.values, other.values, strict=True))
    assert all(weight.equal(before[name]) for name, weight in backbone.state_dict().items())


def test_a_tile_knows_its_own_part_of_the_image_alone(backbone):
    left = noise(1, 1024)
    right = left.copy()
    right.paste(noise(2), (512, 0))
    encoder = VisionEncoder(backbone)
    one, other = encoder.encode(left), encoder.encode(right)
    for mine, yours, place in zip(one.values, other.values, one.places, strict=True):
        same, tile, column = (mine == yours).all(1), place[:, 0] >= 85, place[:, 2]
        assert (tile & (column == 0)).sum() == (tile & (column == 1)).sum() == tile.sum() / 2
        assert same[tile & (column == 0)].all()
        assert not same[tile & (column == 1)].any()
        assert not same[~tile].all()


def test_a_spot_is_seen_where_it_is(backbone):
    """Maps lie as the picture does: no two corners are exchanged, no axes. The fine grid of 12 x 12 tells."""
    encoder = VisionEncoder(backbone)
    fine = range(85 + 1 + 25, 85 + 170)
    ground = Image.new("RGB", (512, 512), (90, 90, 90))
    plain = values_at(encoder.encode(ground), fine)
    for (right, low), place in CORNERS.items():
        shown = ground.copy()
        shown.paste((255, 240, 200), (*place, place[0] + SPOT, place[1] + SPOT))
        changed = (values_at(encoder.encode(shown), fine) - plain).norm(dim=1)
        row, column = divmod(int(changed.argmax()), 12)
        assert (row > 5, column > 5) == (bool(low), bool(right)), (
            f"a spot {place} is seen in row {row}, column {column}"
        )
        assert min(row, 11 - row) <= 1 and min(column, 11 - column) <= 1


@pytest.mark.parametrize("size", [(512, 200), (130, 512)])
def test_a_spot_is_seen_where_it_is_in_a_narrow_picture(size, backbone):
    """Of which a CNN is shown a part."""
    encoder, ground = VisionEncoder(backbone), Image.new("RGB", size, (90, 90, 90))
    plain = encoder.encode(ground)
    slots = plain.places[-1][:, 0]  # of the shallowest map
    fine = slots[slots >= 85 + 1 + 25]
    for right, low in CORNERS:
        shown = ground.copy()
        x, y = right * (size[0] - SPOT), low * (size[1] - SPOT)
        shown.paste((255, 240, 200), (x, y, x + SPOT, y + SPOT))
        changed = (encoder.encode(shown).values[-1] - plain.values[-1])[slots >= fine[0]].norm(dim=1)
        row, column = divmod(int(fine[changed.argmax()]) - (85 + 1 + 25), 12)
        for seen, start in ((column, x), (row, y)):
            assert start * 12 // 512 - 1 <= seen <= (start + SPOT) * 12 // 512 + 1


def test_networks_that_need_not_see_padding_are_known(backbone, request):
    assert backbone.any_size == (request.node.callspec.params["backbone"] in ANY_SIZE)


def test_a_batch_of_two_is_two_of_one(backbone):
    pictures = torch.stack([torch.from_numpy(np.array(noise(seed))).permute(2, 0, 1) for seed in (3, 4)])
    for both, first, second in zip(backbone(pictures), backbone(pictures[:1]), backbone(pictures[1:]), strict=True):
        alone = torch.cat([first, second])
        assert (both - alone).norm() < 1e-4 * alone.norm()
        assert (first - second).norm() > 10 * (both - alone).norm()


def test_its_name_loads_it_again_and_in_16_bits_it_gives_nearly_the_same(backbone):
    again = load_backbone(backbone.name)
    weights = again.state_dict()
    assert (again.name, again.side, again.channels) == (backbone.name, backbone.side, backbone.channels)
    assert weights.keys() == backbone.state_dict().keys()
    assert all(weight.equal(weights[name]) for name, weight in backbone.state_dict().items())
    picture = torch.from_numpy(np.array(noise(5))).permute(2, 0, 1)[None]
    exact = backbone(picture)
    assert all(one.equal(other) for one, other in zip(again(picture), exact, strict=True))
    again.maps.to(torch.bfloat16)
    for one, other in zip(again(picture), exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 0.1 * other.norm()


@pytest.mark.slow
def test_every_family_gives_maps_but_those_that_are_known_not_to(request):
    found = survey()
    refused = {name: row.reason for name, row in found.items() if row.reason}
    assert refused.keys() == CANNOT.keys(), refused
    for name, (error, _) in CANNOT.items():
        assert error in refused[name]
    if path := request.config.getoption("--backbones", None):
        Path(path).write_text(table(found), encoding="utf-8")


def test_the_table_in_the_docs_names_every_family(request):
    """As long as it is of the installed timm and open_clip; `make backbones` makes it anew."""
    text = TABLE.read_text(encoding="utf-8")
    installed = f"timm {version('timm')} and open_clip {version('open_clip_torch')}"
    if request.config.getoption("--backbones", None) or installed not in text:
        pytest.skip("docs/backbones.md is of other versions, or made just now")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(families())
