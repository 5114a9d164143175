"""Batch norms folded into the convolutions before them: the same network in fewer operations, once it is frozen."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batchnorm(network: nn.Module) -> None:
    """Folds, in place, every batch norm that is registered right after the convolution that it follows.

    That order holds in timm's EfficientNets; a network that computes in another order than it registers would come out
    wrong, so whoever folds another one compares its outputs first. An activation in timm's norm layers stays.
    """
    for parent in network.modules():
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(parent, name, getattr(norm, "act", nn.Identity()))
