"""Backbones: frozen image networks that give feature maps.

P pictures, C channels of a map.
"""

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vision.maps import fitting_side, read_maps, resize_network, takes_any_size
from vision.networks import OPEN_CLIP, Network, built_network, timm_networks
from vision.tiles import TILE

MODULE = "module/"  # begins the name of a backbone that was given built, and cannot be loaded by name
STEP = 256  # pixels: parts of a picture are multiples of it; by 128 kernels of 16 sizes crowded each other out
REFUSALS = (AssertionError, RuntimeError, ValueError)  # what networks raise for pictures that they do not take


class Backbone(nn.Module):
    """A network cut open: a picture in, its feature maps out, the deepest last.

    Args:
        maps: timm's or open_clip's network, whole or made by `timm.create_model(..., features_only=True)`.
        mean, std: of the pixels in 0..1, as the network was trained.
        name: what `load_backbone` would load it by again; goes into configs and cache keys.
        side: of the pictures that the network itself takes; a tile is resized to it, so that a map covers all of it.

    A backbone is frozen and in eval mode, and stays so under `train()`. `any_size` says that it takes the upper left
    part of a picture, too, as a CNN does: what is padding need not be shown to it.
    """

    def __init__(
        self, maps: nn.Module, mean: Sequence[float], std: Sequence[float], name: str, side: int = TILE
    ) -> None:
        super().__init__()
        self.maps = maps.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.side = name, side
        # (x/255 - mean) / std as one multiply-add
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
        device = next(maps.parameters()).device
        self.register_buffer("scale", scale.view(3, 1, 1).to(device), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1).to(device), persistent=False)
        with torch.no_grad():  # better a refusal here than at a user's first image
            shapes = [tuple(one.shape) for one in self(torch.zeros(1, 3, TILE, TILE, dtype=torch.uint8, device=device))]
        if any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
            raise ValueError(f"its maps have shapes {shapes}")
        self.channels: list[int] = [shape[1] for shape in shapes]
        self.sides: list[int] = [shape[2] for shape in shapes]
        self.any_size: bool = side == TILE and takes_any_size(self.maps) and self._takes(TILE, STEP)

    @torch.no_grad()
    def _takes(self, height: int, width: int) -> bool:
        """Are the maps of such a picture as large a part of those of a whole one?"""
        try:
            maps = self(torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.scale.device))
        except REFUSALS:
            return False
        wanted = [(side * height / TILE, side * width / TILE) for side in self.sides]
        return [tuple(one.shape[2:]) for one in maps] == wanted

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pictures: Tensor, depths: Sequence[int] | None = None) -> list[Tensor]:
        """uint8 [P, 3, 512, 512] -> a list of [P, C, h, w]: those of these depths (-1: the deepest), or all in order.

        With `any_size`, the upper left part of pictures gives that of maps, where its sides are multiples of STEP.
        What comes after the deepest one that is asked for is not run, where the network allows that.
        """
        rows = pictures.permute(0, 2, 3, 1).flatten(2).float()  # [P, h, w * 3]: six times as fast as by pixel
        scale, shift = (one.float().flatten().repeat(pictures.shape[3]) for one in (self.scale, self.shift))
        torch.addcmul(shift, rows, scale, out=rows)
        pixels = rows.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
        if self.side != TILE:
            pixels = interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)
        pixels = pixels.to(self.dtype, memory_format=torch.channels_last)
        if depths is None:
            return read_maps(self.maps, pixels)
        numbers = [len(self.channels) + depth for depth in depths]
        in_order = sorted(set(numbers))
        found = dict(zip(in_order, read_maps(self.maps, pixels, in_order), strict=True))
        return [found[number] for number in numbers]

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in. Tables and norms may be in another, as open_clip leaves them in fp32."""
        layers = (module for module in self.maps.modules() if isinstance(module, nn.Conv2d | nn.Linear))
        return next(layers).weight.dtype


def load_backbone(vision: str | os.PathLike[str] | nn.Module, *, pretrained: bool = True) -> Backbone:
    """Opens a backbone: any of timm's networks, or the image tower of any of open_clip's models.

    Args:
        vision: one of

            * "timm/NAME" or "hf-hub:NAME"; a folder that timm's `save_for_hf` wrote, also as "local-dir:PATH";
            * "open_clip:MODEL/TAG", where TAG may be a checkpoint's path; "open_clip:hf-hub:NAME",
              "open_clip:local-dir:PATH";
            * a network built by timm, whole or with `features_only=True`; open_clip's CLIP, CoCa or CustomTextCLIP, of
              which the image tower alone is kept, or that tower (`.visual`). It is taken over: frozen, and its position
              embeddings interpolated.
        pretrained: with its weights, or random ones; a built network has its own.

    A network for pictures of one size, as a ViT, is made for 512x512: its position embeddings are interpolated. Where a
    stride or patch does not divide 512, as DINOv2's 14, the network sees the picture resized to the nearest size that
    fits (518), and where it takes no other size than its own (EfficientFormer, MLP-Mixer), to that: a map covers
    exactly the picture. What comes after the last feature map of a named network is not kept, and no map has gone
    through its final norm.

    Raises ValueError for names that neither library knows, weights that cannot be had, and modules without maps.
    """
    if isinstance(vision, Backbone):
        return vision
    if isinstance(vision, nn.Module):
        found = built_network(vision)
        return fit([found], f"{MODULE}{found.kind}")
    name = os.fspath(vision)
    if not name.startswith(OPEN_CLIP):
        return fit(timm_networks(name, pretrained), name)
    from vision.towers import clip_network  # here, since open_clip takes a second

    return fit([clip_network(name, pretrained)], name)


def fit(networks: Iterable[Network], name: str) -> Backbone:
    """The first of the networks, as it was made for several sizes, that takes a side near 512 or, otherwise, its own.

    Raises ValueError if none does.
    """
    refusals = []
    for one in networks:
        near = fitting_side(one.module)
        for side, resized in ((near, False), (near, True), (one.side, False)):
            try:
                if resized:
                    resize_network(one.module, side)
                return Backbone(one.module, one.mean, one.std, name, side)
            except REFUSALS as error:
                refusals.append(error)
    raise ValueError(
        f"vision: {name} refuses pictures of {TILE}x{TILE} ({refusals[0]}), and of other sizes; make it with "
        f"img_size={TILE}, if it has that, or take another"
    ) from refusals[0]
