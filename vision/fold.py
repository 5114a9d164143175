"""Fewer operations for a frozen network: batch norms and activations become part of the convolutions before them."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.functional import relu6
from torch.nn.utils.fusion import fuse_conv_bn_weights

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def fold_batchnorm(network: nn.Module) -> None:
    """Folds, in place, every batch norm that is registered right after the convolution that it follows.

    That order holds in timm's EfficientNets; a network that computes in another order than it registers would come out
    wrong, so whoever folds another one compares its outputs first. An activation in timm's norm layers stays.
    """
    for parent, (_, conv), (name, norm) in _neighbours(network):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            setattr(parent, name, getattr(norm, "act", nn.Identity()))


def fold_relu6(network: nn.Module) -> None:
    """Folds, in place, every ReLU6 that is registered right after a convolution with a bias; as for batch norms."""
    for parent, (place, conv), (name, act) in _neighbours(network):
        if isinstance(conv, nn.Conv2d) and _plain(conv) and isinstance(act, nn.ReLU6):
            setattr(parent, place, ConvReLU6(conv))
            setattr(parent, name, nn.Identity())


def _neighbours(network: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, nn.Module], tuple[str, nn.Module]]]:
    """(parent, (name, child), (name, child)) for children registered one right after the other."""
    for parent in list(network.modules()):
        for one, other in pairwise(list(parent.named_children())):
            yield parent, one, other


def _plain(conv: nn.Conv2d) -> bool:
    """Has it a bias, and pads with zeros, so many on each side or as TensorFlow does?"""
    known = type(conv) in (nn.Conv2d, Conv2dSame)  # others may do anything with their weights
    return known and conv.bias is not None and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class ConvReLU6(nn.Conv2d):
    """A convolution and a ReLU6. On a CPU one call of oneDNN, in channels_last with the same bits as two.

    Memory is passed over once. That call has no gradients and no float64: where it cannot be, there are two.

    Args:
        conv: whose parameters it takes over; timm's, which pads as TensorFlow does, or a plain one, padded with zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # a pair, though it is typed as any tuple; so are the next
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            device="meta",
        )
        assert conv.bias is not None
        self.weight, self.bias = conv.weight, conv.bias
        self.same = isinstance(conv, Conv2dSame)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        known = x.device.type == "cpu" and x.dtype == self.weight.dtype in (torch.float32, torch.bfloat16)
        if learns or not known or not ONEDNN or torch.is_autocast_enabled("cpu"):
            return relu6(super().forward(x))
        shape = self.padding, self.stride, self.dilation, self.groups
        folded: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *shape, "hardtanh", [0.0, 6.0], ""
        )
        return folded
