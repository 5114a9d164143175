"""Feature maps of a network, whichever library built it: how many, how large a picture they are of, and only some.

P pictures, C channels of a map.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import Format, resample_abs_pos_embed
from timm.models import FeatureInfo
from torch import Tensor, nn

from vision.tiles import TILE


def gives_maps(network: nn.Module) -> bool:
    """Is it one of timm's or open_clip's networks, whole or made with `features_only=True`?"""
    return hasattr(network, "forward_intermediates") or isinstance(getattr(network, "feature_info", None), FeatureInfo)


def read_maps(network: Any, pixels: Tensor, chosen: Sequence[int] | None = None) -> list[Tensor]:
    """Normalized pixels [P, 3, h, w] -> the maps [P, C, h', w'] of these numbers, from the shallowest 0 on; None: all.

    They are what the blocks or stages give, as the libraries' own `features_only` has them: no final norm is applied
    (it was trained for a pooled token, or for a classifier), and class and register tokens are not in them. Of a whole
    network nothing is run that comes after the last map chosen.
    """
    if not hasattr(network, "forward_intermediates"):
        maps = network(pixels)
        if getattr(network, "output_fmt", None) == Format.NHWC:  # as Swin's and MambaOut's are
            maps = [one.movedim(-1, 1) for one in maps]
        return maps if chosen is None else [maps[number] for number in chosen]
    early = type(network).__name__ != "ModifiedResNet"  # open_clip's stops early when it is told not to
    found = network.forward_intermediates(pixels, indices=chosen, stop_early=early, intermediates_only=True)
    return found["image_intermediates"] if isinstance(found, dict) else found  # open_clip's, and timm's


def fitting_side(network: Any) -> int:
    """The side nearest to 512 that the network's coarsest stride or patch divides: 512, or 518 with patches of 14."""
    info = getattr(network, "feature_info", ())
    strides = info.reduction() if isinstance(info, FeatureInfo) else [stage["reduction"] for stage in info]
    coarsest = max(strides or getattr(network, "patch_size", (1,)))  # of open_clip's ViT; its ResNet's 32 fits
    return round(TILE / coarsest) * coarsest


def takes_any_size(network: nn.Module) -> bool:
    """Is a part of a picture all that the maps of that part are made of, but for a fringe, as convolutions go?

    Not where there is attention or an encoding of positions, told by their classes' names, as few networks without
    would be: they may know places by a table for one size, or count them in parts of the whole.
    """
    names = [type(module).__name__.lower() for module in network.modules()]
    return not any(word in name for name in names for word in ("attention", "attn", "position"))


def resize_network(network: Any, side: int) -> None:
    """Makes a built network take pictures of another side: its position embeddings are interpolated.

    Raises ValueError if it has no way to.
    """
    network = getattr(network, "model", network)  # what timm's features_only wraps a ViT in
    if hasattr(network, "set_input_size"):
        network.set_input_size((side, side))
    elif hasattr(network, "positional_embedding"):  # open_clip's ViT, whose class token is the first
        grid = [side // patch for patch in network.patch_size]
        kept = network.positional_embedding
        table = resample_abs_pos_embed(kept[None], grid, list(network.grid_size), num_prefix_tokens=1)[0]
        network.positional_embedding = nn.Parameter(table.detach(), requires_grad=kept.requires_grad)
        network.grid_size, network.image_size = tuple(grid), (side, side)
    else:
        raise ValueError(f"{type(network).__name__} is made for pictures of one size")
