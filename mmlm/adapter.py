"""The adapter: all that is trained. A projection of the media, and a gated block for each of some decoder layers."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.block import GatedBlock, RMSNorm, Whiten, at_least_fp32
from mmlm.config import AdapterConfig
from vision.pyramid import SLOTS

GRID = 5  # a tile's row and column are below this: 2048x768 is 4 x 2 tiles


class MediaProjection(nn.Module):
    """Pooled features to media embeddings that know where they are: level and cell (slot), tile row and column.

    N cells of one feature map, over all images of a batch; C its channels; M the width of a media embedding.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.norms = cast("Sequence[Whiten]", nn.ModuleList(Whiten(c) for c in channels))
        self.inputs = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.slot = nn.Parameter(torch.randn(SLOTS, width) * 0.5)
        self.row = nn.Parameter(torch.randn(GRID, width) * 0.5)
        self.column = nn.Parameter(torch.randn(GRID, width) * 0.5)
        self.norm = RMSNorm(width)

    def forward(self, values: list[Tensor], places: Tensor) -> Tensor:
        """Per map [N, C] in the order of `places` [sum of N, 3] (slot, row, column) -> [sum of N, M]."""
        looks = [project(norm(value)) for value, norm, project in zip(values, self.norms, self.inputs, strict=True)]
        slot, row, column = places.unbind(-1)
        # the gradient of plain indexing is summed in no fixed order on a CPU, and slower
        tables = ((self.slot, slot), (self.row, row), (self.column, column))
        where = sum(table.index_select(0, place) for table, place in tables)
        return self.norm(at_least_fp32(torch.cat(looks)) + where)


class Adapter(nn.Module):
    """Media projection and gated blocks: one flat module, apart from the frozen ones."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.width = config.hidden
        self.media = MediaProjection(config.channels, config.media_dim)
        self.blocks = cast("Sequence[GatedBlock]", nn.ModuleList(GatedBlock(config) for _ in config.layers))

    def gates(self) -> dict[str, float]:
        """tanh of every gate, by name: how far each is open."""
        return {
            f"{i}.{kind}": torch.tanh(gate.detach()).item()
            for i, block in enumerate(self.blocks)
            for kind, gate in (("attention", block.attention_gate), ("ff", block.ff_gate))
        }
