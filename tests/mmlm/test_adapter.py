"""The adapter's own products: features that are whitened, keys and values of all blocks at once."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlm.adapter import whitened
from mmlm.block import Whiten


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


def fitted(width, dtype=torch.float32):
    """A norm that was fitted to data and then trained, and a product after it."""
    torch.manual_seed(0)
    norm, product = Whiten(width), nn.Linear(width, 12)
    norm.fit(torch.randn(500, width) @ torch.randn(width, width) + torch.randn(width))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype), product.to(dtype)


@pytest.mark.parametrize("rows", [1, 24, 25, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_few_features_and_of_many_the_same_is_made(rows, dtype):
    """Values, and the gradients of all that learns and of the features."""
    norm, product = fitted(20, dtype)
    x = torch.randn(rows, 20, dtype=dtype, requires_grad=True)
    learns = [x, norm.weight, norm.bias, product.weight, product.bias]
    for one, other in zip(
        *[[y, *torch.autograd.grad(y.sin().sum(), learns)] for y in (whitened(x, norm, product), product(norm(x)))],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [12, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_features_are_as_near_to_their_true_values(rows, dtype):
    norm, product = fitted(20)
    x = torch.randn(rows, 20)
    true = product(norm(x))
    with torch.autocast("cpu", dtype):
        made, two = whitened(x, norm, product), product(norm(x))
    assert made.dtype == two.dtype == dtype
    assert (made.float() - true).norm() < 1.5 * (two.float() - true).norm() + 1e-6


@pytest.mark.parametrize("rows", [10, 500])
def test_forward_and_backward_have_one_product_and_one_copy_of_many_features(rows):
    """And a fixed rotation: of few features, or of the weights."""
    (norm, product), kept = fitted(20), []
    x = torch.randn(rows, 20)
    keeping = torch.autograd.graph.saved_tensors_hooks(lambda its: kept.append(its) or its, lambda its: its)
    with FlopCounterMode(display=False) as forward, keeping:
        made = whitened(x, norm, product)
    with FlopCounterMode(display=False) as backward:
        made.sum().backward()
    many = rows > 24
    assert sum(its.shape == (rows, 20) for its in kept) == 1
    assert forward.get_total_flops() == 2 * 20 * 12 * rows + 2 * 20 * 20 * min(rows, 12)
    assert backward.get_flop_counts()["Global"][torch.ops.aten.mm] == 2 * 20 * 12 * rows + many * 2 * 20 * 20 * 12
    assert norm.weight.grad.abs().min() > 0 and norm.bias.grad.abs().min() > 0


def test_what_is_around_the_product_of_features_is_asked():
    norm, product = fitted(20)
    x = torch.randn(200, 20)
    torch.testing.assert_close(whitened(x, norm, Doubled(product)), 2 * whitened(x, norm, product))


def test_what_waits_for_the_norm_of_features_is_called():
    norm, product = fitted(20)
    norm.register_forward_hook(lambda _, __, made: 0 * made)
    torch.testing.assert_close(whitened(torch.randn(200, 20), norm, product), product.bias.expand(200, -1))


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_what_waits_for_gradients_is_called(register, adapter):
    """Of the norm of features, and of one product of several."""
    norm, product = fitted(20)
    calls = []
    for waited in (norm, adapter.blocks[1].v):
        getattr(waited, register)(lambda *_: calls.append(1))
    whitened(torch.randn(200, 20, requires_grad=True), norm, product).sum().backward()
    assert len(calls) == 1
    media = torch.randn(5, adapter.blocks[0].k.in_features, requires_grad=True)
    sum(v.sum() for _, v in adapter.keys_values(media)).backward()
    assert len(calls) == 2
