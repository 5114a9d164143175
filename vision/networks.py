"""timm's networks by name, and what of a built module is a network."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models import resolve_model_input_args
from torch import nn

from vision.maps import fitting_side, gives_maps
from vision.tiles import TILE

OPEN_CLIP = "open_clip:"  # begins the names of its models


@dataclass(frozen=True)
class Network:
    """A network that gives maps, and what it was trained on: mean and std of the pixels in 0..1, side of a picture."""

    module: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    side: int
    kind: str
    """What its library calls the architecture."""


def built_network(module: Any) -> Network:
    """A module that was given built: timm's, or open_clip's, of whose model it is the image tower.

    Raises ValueError for one that gives no feature maps.
    """
    tower = getattr(module, "visual", module)
    network = getattr(tower, "trunk", tower)  # of an open_clip tower that is one of timm's networks
    if not gives_maps(network):
        raise ValueError(
            f"the vision module {type(module).__name__} gives no feature maps: take a network of timm, whole or made "
            "with features_only=True, or a model of open_clip, or name one: vision='timm/NAME'"
        )
    found = described(network)
    if type(tower).__module__.startswith("open_clip."):
        cfg = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD} | getattr(tower, "preprocess_cfg", {})
        return replace(found, mean=cfg["mean"], std=cfg["std"])
    return found


def timm_networks(name: str, pretrained: bool) -> Iterator[Network]:
    """A network of timm: "timm/NAME", "hf-hub:NAME", a folder or "local-dir:PATH".

    One for pictures of one size comes made for the side nearest to 512 that fits, and then as it was trained.

    Raises ValueError for a name that timm does not know, and for weights that cannot be had.
    """
    source = f"local-dir:{name}" if os.path.isdir(name) else name.removeprefix("timm/")
    try:
        args = resolve_model_input_args(source)
        made = resolve_model_input_args(source, {"img_size": TILE})
        if made != args:
            with torch.device("meta"):
                made["img_size"] = (fitting_side(timm.create_model(**made)),) * 2
            try:
                yield pruned(described(timm.create_model(**made, pretrained=pretrained)))
            except RuntimeError as error:
                if "size mismatch" not in str(error):  # what is learnt for one size alone, as an MLP-Mixer
                    raise
        yield pruned(described(timm.create_model(**args, pretrained=pretrained)))
    except Exception as error:  # of many kinds: names, configs and files are the user's
        raise ValueError(
            f"vision={name!r}: {error}{did_you_mean(source, [*timm.list_models(), *timm.list_pretrained()])}; name a "
            "timm model, as 'timm/resnet50', or a folder with its weights, 'local-dir:PATH'"
        ) from error


def pruned(found: Network) -> Network:
    """The network without what comes after its last map: norm, pooling, classifier."""
    network: Any = found.module
    if hasattr(network, "prune_intermediate_layers"):  # open_clip's ResNet has it not, and its ViT keeps the pooling
        network.prune_intermediate_layers(None, prune_norm=True, prune_head=True)
    for pooling in ("attnpool", "attn_pool", "attn_pool_contrastive"):
        if hasattr(network, pooling):
            setattr(network, pooling, None)
    return found


def described(network: Any) -> Network:
    """The network with what its config says; without one, pixels in -1..1."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    side = cfg.get("input_size", (3, TILE, TILE))[-1]
    kind = cfg.get("architecture", type(network).__name__)
    return Network(network, cfg.get("mean", (0.5,) * 3), cfg.get("std", (0.5,) * 3), side, kind)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about a name that is not known: those that are near, if there are any."""
    near = [] if name in known or ":" in name else get_close_matches(name, known, 4)
    return f": did you mean {', '.join(near)}?" if near else ""
