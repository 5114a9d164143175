"""Backbones: frozen image networks that give feature maps.

P pictures, C channels of a map.
"""

import os
from typing import Any

import torch
from timm import create_model
from timm.layers import Format
from timm.models import resolve_model_input_args
from torch import Tensor, nn

from vision.tiles import TILE

MODULE = "module/"  # begins the name of a backbone that was given built, and cannot be loaded by name


class Backbone(nn.Module):
    """A timm network cut open: a picture in, its feature maps out, the deepest last.

    Args:
        maps: a module made by `timm.create_model(..., features_only=True)`.
        mean, std: of the pixels in 0..1, as the network was trained.
        name: what `load_backbone` would load it by again; goes into configs and cache keys.

    A backbone is frozen and in eval mode, and stays so under `train()`.
    """

    def __init__(self, maps: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], name: str) -> None:
        super().__init__()
        info: Any = getattr(maps, "feature_info", None)
        if not callable(getattr(info, "channels", None)):  # of a whole network it is a plain list
            raise ValueError(
                f"the vision module {type(maps).__name__} gives no feature maps: make it with "
                "timm.create_model(NAME, features_only=True), or name it: vision='timm/NAME'"
            )
        self.maps = maps.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.channels_last = getattr(maps, "output_fmt", None) == Format.NHWC  # as Swin's and MambaOut's are
        # (x/255 - mean) / std as one multiply-add
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
        device = next(maps.parameters()).device
        self.register_buffer("scale", scale.view(3, 1, 1).to(device), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1).to(device), persistent=False)

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """uint8 [P, 3, 512, 512] -> a list of [P, C, h, w], the deepest last."""
        weight = next(self.maps.parameters())
        rows = pictures.permute(0, 2, 3, 1).flatten(2).float()  # [P, h, w * 3]: six times as fast as by pixel
        scale, shift = (one.float().flatten().repeat(pictures.shape[3]) for one in (self.scale, self.shift))
        torch.addcmul(shift, rows, scale, out=rows)
        maps = self.maps(rows.to(weight.dtype).unflatten(2, (-1, 3)).permute(0, 3, 1, 2))
        return [one.movedim(-1, 1) for one in maps] if self.channels_last else maps


def load_backbone(vision: str | os.PathLike[str] | nn.Module, *, pretrained: bool = True) -> Backbone:
    """Opens a backbone: "timm/NAME", "hf-hub:NAME", a folder (also as "local-dir:PATH") or a timm module.

    A folder is one that timm's `save_for_hf` wrote; a module is made with features_only=True.
    A network that takes pictures of one size alone, as many ViTs do, is made for 512x512.

    Raises ValueError for names that timm does not know, weights that cannot be had, and modules that give no feature
    maps or refuse 512x512 pictures.
    """
    if isinstance(vision, Backbone):
        return vision
    if isinstance(vision, nn.Module):
        cfg = getattr(vision, "default_cfg", None) or getattr(vision, "pretrained_cfg", None) or {}
        name = f"{MODULE}{cfg.get('architecture', type(vision).__name__)}"
        return _tried(Backbone(vision, cfg.get("mean", (0.5,) * 3), cfg.get("std", (0.5,) * 3), name))
    name = os.fspath(vision)
    source = f"local-dir:{name}" if os.path.isdir(name) else name.removeprefix("timm/")
    try:
        network = resolve_model_input_args(source, {"img_size": TILE})
        model: Any = create_model(**network, features_only=True, pretrained=pretrained)
    except Exception as error:  # of many kinds: names, configs and files are the user's
        raise ValueError(
            f"vision={name!r}: {error}; name a timm model with feature maps, as 'timm/resnet50', "
            "or a folder with its weights, 'local-dir:PATH'"
        ) from error
    cfg = model.pretrained_cfg if hasattr(model, "pretrained_cfg") else model.default_cfg
    return _tried(Backbone(model, cfg["mean"], cfg["std"], name))


@torch.no_grad()
def _tried(backbone: Backbone) -> Backbone:
    """The backbone, once it has seen a picture: better a refusal here than at a user's first image."""
    try:
        backbone(torch.zeros(1, 3, TILE, TILE, dtype=torch.uint8, device=backbone.scale.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"vision: {backbone.name} refuses pictures of {TILE}x{TILE} ({error}); make it with img_size={TILE}, if it "
            "has that, or take another"
        ) from error
    return backbone
