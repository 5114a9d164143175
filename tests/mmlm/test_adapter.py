"""The adapter's own products: keys and values of all blocks at once."""

import pytest
import torch
from torch import nn


class Doubled(nn.Module):
    """Something around a product, as LoRA is."""

    def __init__(self, product):
        super().__init__()
        self.product = product

    def forward(self, x):
        return 2 * self.product(x)


@pytest.fixture
def adapter(make_model):
    return make_model(layers=[0, 1, 3], kv_heads=1, head_dim=8).adapter


def one_by_one(adapter, media):
    return [block.keys_values(block.k(media), block.v(media)) for block in adapter.blocks]


def test_all_blocks_keys_and_values_are_those_of_each(adapter):
    media = torch.randn(11, adapter.blocks[0].k.in_features, requires_grad=True)
    grads = []
    for made in (adapter.keys_values(media), one_by_one(adapter, media)):
        flat = torch.cat([x.flatten() for pair in made for x in pair])
        weights = [weight for block in adapter.blocks for weight in (block.k.weight, block.v.weight)]
        grads.append([flat, *torch.autograd.grad(flat.sin().sum(), [media, *weights])])
    assert len(grads[0]) == 8
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_around_one_of_them_is_asked(adapter):
    media = torch.randn(5, adapter.blocks[0].k.in_features)
    before = adapter.keys_values(media)
    adapter.blocks[1].v = Doubled(adapter.blocks[1].v)
    after = adapter.keys_values(media)
    torch.testing.assert_close(after[1][1], 2 * before[1][1])
    torch.testing.assert_close(after[2][1], before[2][1])
