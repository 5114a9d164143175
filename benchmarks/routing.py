"""Routers that draw lots: a decoder of random weights reads as many experts with images as without.

Its tokens become alike as soon as blocks of random weights add to them all, and its routers send them to the same few:
of 16 experts, 8 rows took 11 each time by themselves and 2 with images. Who has such blocks would read a fifth of the
weights that others do, which no trained model would. So experts are drawn, by the same lots for all; what they are
weighted by is the router's own.
"""

from typing import Any

import torch
from torch import Tensor, nn


def draw_lots(decoder: nn.Module) -> None:
    """Every router of the decoder draws lots from now on."""
    routers = [module for module in decoder.modules() if type(module).__name__.endswith("TopKRouter")]
    for number, router in enumerate(routers):
        router.register_forward_hook(Lots(number))


class Lots:
    """What a router made of N tokens, with other experts of each."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws: torch.Generator | None = None

    def __call__(self, router: nn.Module, args: Any, made: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        logits, weights, experts = made  # [N, experts], [N, taken], [N, taken]
        if self.draws is None:
            self.draws = torch.Generator(logits.device).manual_seed(self.seed)
        lots = torch.rand(logits.shape, generator=self.draws, device=logits.device)
        return logits, weights, lots.topk(experts.shape[-1]).indices.to(experts.dtype)
