import pytest
import torch
from timm import create_model
from timm.layers import create_conv2d
from torch import nn

from vision.fold import ONEDNN, ConvReLU6, fold_batchnorm, fold_relu6


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = create_model("tf_efficientnet_lite0", features_only=True).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones are the identity: make them do something
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made


@torch.no_grad()
def test_a_folded_network_gives_the_same_maps_without_batch_norms(network):
    picture = torch.randn(1, 3, 64, 64)
    wanted = network(picture)
    fold_batchnorm(network)
    got = network(picture)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_with_relu6_folded_too_it_keeps_its_weights_and_gives_the_same_bits(network, dtype):
    fold_batchnorm(network)
    network.to(dtype, memory_format=torch.channels_last)
    picture = torch.randn(1, 3, 96, 64, dtype=dtype).to(memory_format=torch.channels_last)
    wanted, weights = network(picture), {name: value.clone() for name, value in network.state_dict().items()}
    fold_relu6(network)
    got, kept = network(picture), network.state_dict()
    assert not any(isinstance(module, nn.ReLU6) for module in network.modules())
    assert all(torch.equal(kept[name], weights[name]) for name in weights | kept)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"groups": 4}, {"dilation": 2}, {"stride": 2, "padding": "same"}]
)
@torch.no_grad()
def test_a_folded_convolution_gives_what_both_gave(onednn, options, monkeypatch):
    if onednn and not ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr("vision.fold.ONEDNN", onednn)
    torch.manual_seed(0)
    conv = create_conv2d(4, 8, 3, bias=True, **options)
    picture = 9 * torch.randn(2, 4, 12, 10)
    wanted = conv(picture).clamp(0, 6)
    torch.testing.assert_close(ConvReLU6(conv)(picture), wanted)
    assert 0 < (wanted == 6).sum() < (wanted > 0).sum() < wanted.numel()


def test_gradients_and_float64_are_those_of_both():
    conv = nn.Conv2d(2, 3, 3)
    folded = ConvReLU6(conv)
    picture = torch.randn(1, 2, 6, 6, requires_grad=True)
    grads = [
        torch.autograd.grad(out.square().sum(), picture)[0] for out in (conv(picture).clamp(0, 6), folded(picture))
    ]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        wanted = conv.double()(picture.double()).clamp(0, 6)
        torch.testing.assert_close(folded.double()(picture.double()), wanted)


class Scaled(nn.Conv2d):
    """Of a kind that may do more than convolve."""


@pytest.mark.parametrize(
    "parts",
    [
        (nn.Conv2d(1, 1, 1), nn.ReLU()),
        (nn.Conv2d(1, 1, 1, bias=False), nn.ReLU6()),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.ReLU6()),
        (nn.Conv2d(1, 1, 3, padding="same"), nn.ReLU6()),
        (Scaled(1, 1, 1), nn.ReLU6()),
    ],
)
def test_what_could_come_out_otherwise_stays_what_it_is(parts):
    network = nn.Sequential(*parts)
    fold_relu6(network)
    assert tuple(network) == parts
