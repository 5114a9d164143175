"""The adapter: all that is trained. A projection of the media, and a gated block for each of some decoder layers."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from mmlm.block import GatedBlock, RMSNorm, Whiten, at_least_fp32
from mmlm.config import AdapterConfig
from mmlm.decoder import gathered
from mmlm.resampler import Resampler
from mmlm.weights import is_hooked, is_plain
from vision.pyramid import GRID

IMAGES = 32  # images of a row that are told apart by their place in it; further ones have the last place together


class MediaProjection(nn.Module):
    """Pooled features to media embeddings that know where they are: level and cell (slot), tile row and column.

    N cells of one feature map, over all images of a batch; C its channels; E media embeddings, M their width.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        width = config.media_dim
        self.norms = cast("Sequence[Whiten]", nn.ModuleList(Whiten(c) for c in config.channels))
        self.inputs = cast("Sequence[nn.Linear]", nn.ModuleList(nn.Linear(c, width) for c in config.channels))
        self.slot = nn.Parameter(torch.randn(sum(config.pyramid.cells), width) * 0.5)
        self.row = nn.Parameter(torch.randn(GRID, width) * 0.5)
        self.column = nn.Parameter(torch.randn(GRID, width) * 0.5)
        self.norm = RMSNorm(width)
        self.resampler = Resampler(config, self.slot) if config.pyramid.resampled else None

    def forward(self, values: Sequence[Tensor], media: Mapping[str, Any]) -> Tensor:
        """Per map [N, C] -> the embeddings [E, M] that a batch's rows gather: of each cell, or the resampler's.

        Args:
            media: the part of the batch that says where they are: `media_places`, and what a resampler needs.
        """
        looks = [whitened(*one) for one in zip(values, self.norms, self.inputs, strict=True)]
        cells = at_least_fp32(torch.cat(looks))
        places = media["media_places"].unbind(-1)
        for table, place in zip((self.slot, self.row, self.column), places, strict=True):
            # the gradient of plain indexing is summed in no fixed order on a CPU, and slower
            cells += table.index_select(0, place)
        cells = self.norm(cells)
        if self.resampler is None:
            return cells
        return self.resampler(cells, media["media_reads"], media["media_views"])


class Adapter(nn.Module):
    """Media projection and gated blocks: one flat module, apart from the frozen ones."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.width = config.hidden
        self.media = MediaProjection(config)
        self.blocks = cast("Sequence[GatedBlock]", nn.ModuleList(GatedBlock(config) for _ in config.layers))
        # last, so that all others begin as under "latest", where there is nothing to tell apart
        self.images = nn.Parameter(torch.randn(IMAGES - 1, config.media_dim) * 0.5) if config.attend == "all" else None

    @property
    def layers(self) -> list[nn.Module]:
        """The gated blocks, and the resampler's layers if there is one."""
        return [*self.blocks, *(self.media.resampler.layers if self.media.resampler else [])]

    def placed(self, media: Tensor, place: Tensor) -> Tensor:
        """Media embeddings [E, M] and the place of each one's image in its row, int64 [E] below `IMAGES` -> the same.

        Nothing is added to those of the first image, so that one alone is what it is under "latest".
        """
        assert self.images is not None
        return media + pad(self.images, (0, 0, 1, 0)).index_select(0, place)

    def keys_values(self, media: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Media embeddings [E, M] -> keys and values of each block, each [E, K, d]. Once per prompt, never per token.

        All blocks' keys in one product, and all values, which is faster than many narrow ones; not where something is
        around one of them (LoRA), or its weights are not here until it is called (ZeRO-3).
        """
        keys, values = (together(media, [getattr(block, name) for block in self.blocks]) for name in ("k", "v"))
        return [block.keys_values(k, v) for block, k, v in zip(self.blocks, keys, values, strict=True)]

    def gates(self) -> dict[str, float]:
        """tanh of every gate, by name: how far each is open. To be called in every process of a sharded model."""
        gates = {
            f"{i}.{kind}": gate.detach()
            for i, block in enumerate(self.blocks)
            for kind, gate in (("attention", block.attention_gate), ("ff", block.ff_gate))
        }
        return {name: torch.tanh(gathered(gate)).item() for name, gate in gates.items()}


def whitened(x: Tensor, norm: Whiten, product: nn.Linear) -> Tensor:
    """product(norm(x)) of features x [N, C] -> [N, M].

    The norm's scale and shift are multiplied into the product's weights, and of many features its rotation, too:
    backward then needs one copy of the features, and no product for the gradients of scale and shift. Not so where
    something is around either (LoRA, hooks), or weights are elsewhere (ZeRO-3, FSDP).
    """
    plain = type(norm) is Whiten and type(norm.weight) is nn.Parameter and norm.weight.shape == x.shape[-1:]
    if not plain or is_hooked(norm) or not is_plain(product):
        return cast("Tensor", product(norm(x)))
    many = len(x) > product.out_features * (2 if torch.is_grad_enabled() else 1)  # whose gradients are rotated back
    with torch.autocast(x.device.type, enabled=False):
        scale, shift, weight, bias = map(at_least_fp32, (norm.weight, norm.bias, product.weight, product.bias))
        weight, bias = weight * scale, torch.addmv(bias, weight, shift)
        weight = weight @ at_least_fp32(norm.rotation).T if many else weight
    return linear(norm.centred(x) if many else norm.centred(x) @ norm.rotation, weight, bias)


def together(x: Tensor, products: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """What each of the products makes of x, in one where that can be."""
    if not all(map(is_plain, products)):
        return [product(x) for product in products]
    widths = [product.out_features for product in products]
    return linear(x, torch.cat([product.weight for product in products])).split(widths, -1)
