"""Backbones: frozen image networks that give feature maps.

P pictures, C channels of a map.
"""

import torch
from timm import create_model
from timm.models import FeatureListNet
from torch import Tensor, nn


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
        if not hasattr(maps, "feature_info"):
            raise ValueError(
                f"the vision module {type(maps).__name__} gives no feature maps: make it with "
                "timm.create_model(NAME, features_only=True), or name it: vision='timm/NAME'"
            )
        self.maps = maps.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
        self.channels: list[int] = maps.feature_info.channels()
        self.strides: list[int] = maps.feature_info.reduction()
        # (x/255 - mean) / std as one multiply-add
        scale = 1 / (255 * torch.tensor(std))
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """uint8 [P, 3, 512, 512] -> a list of [P, C, h, w], the deepest last."""
        weight = next(self.maps.parameters())
        pixels = torch.addcmul(self.shift.float(), pictures.float(), self.scale.float())
        return self.maps(pixels.to(weight.dtype, memory_format=torch.channels_last))


def load_backbone(vision: str | nn.Module, *, pretrained: bool = True) -> Backbone:
    """Opens a backbone: "timm/NAME", "hf-hub:NAME", "local-dir:PATH" or a timm module made with features_only=True.

    Raises ValueError for names that timm does not know and modules that give no feature maps.
    """
    if isinstance(vision, Backbone):
        return vision
    if isinstance(vision, nn.Module):
        cfg = getattr(vision, "default_cfg", None) or getattr(vision, "pretrained_cfg", None) or {}
        name = f"module/{cfg.get('architecture', type(vision).__name__)}"
        return Backbone(vision, cfg.get("mean", (0.5,) * 3), cfg.get("std", (0.5,) * 3), name)
    name = vision.removeprefix("timm/")
    try:
        model = create_model(name, features_only=True, pretrained=pretrained)
    except RuntimeError as error:
        raise ValueError(
            f"vision={vision!r}: {error}; name a timm model with feature maps, as 'timm/resnet50'"
        ) from error
    assert isinstance(model, FeatureListNet | nn.Module)
    cfg = model.pretrained_cfg if hasattr(model, "pretrained_cfg") else model.default_cfg
    return Backbone(model, cfg["mean"], cfg["std"], vision)
