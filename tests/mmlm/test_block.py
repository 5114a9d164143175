"""One gated block: exact where it must be, and attention as the books have it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mmlm.block import GatedBlock, attend
from mmlm.config import AdapterConfig

D, M = 32, 24


def a_block(heads=4, kv_heads=2, gate=0.8, seed=0):
    torch.manual_seed(seed)
    block = GatedBlock(
        AdapterConfig(hidden=D, media_dim=M, heads=heads, kv_heads=kv_heads, head_dim=8, ff_factor=1.5, layers=[0])
    )
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
        block.attention_gate.fill_(gate)
        block.ff_gate.fill_(gate)
    return block


def seen(block, rows, length):
    """Keys and values [rows, K, S, d] of random media."""
    k, v = block.keys_values(torch.randn(rows * length, M))
    return (x.unflatten(0, (rows, length)).transpose(1, 2).detach() for x in (k, v))


@given(
    sees=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3),
    gate=st.floats(-3, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=40)
def test_tokens_that_see_nothing_come_out_as_they_went_in(sees, gate, dtype):
    block = a_block(gate=gate)
    sees = torch.tensor(sees)
    hidden = (torch.randn(*sees.shape, D) * 50).to(dtype)
    k, v = seen(block, len(sees), 7)
    out = block(hidden, k, v, None, sees)
    assert out.dtype == dtype
    assert torch.equal(out[~sees], hidden[~sees])
    assert torch.isfinite(out).all()


@given(scale=st.floats(1e-3, 1e3), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=20)
def test_with_gates_shut_all_come_out_as_they_went_in(scale, dtype):
    block = a_block(gate=0.0)
    hidden = (torch.randn(2, 5, D, dtype=torch.float64) * scale).to(dtype)
    assert torch.equal(block(hidden, *seen(block, 2, 7), None, None), hidden)


def test_a_new_block_is_shut():
    block = GatedBlock(AdapterConfig(hidden=D, media_dim=M, heads=4, kv_heads=2, head_dim=8))
    assert block.attention_gate == 0 and block.ff_gate == 0


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_attention(heads, kv_heads, masked):
    """Against torch's own, every key head repeated for its query heads."""
    block = a_block(heads, kv_heads)
    x, (k, v) = torch.randn(2, 5, D), seen(block, 2, 7)
    mask = torch.rand(2, 5, 7) > 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True
    q = block.q_norm(block.q(x).unflatten(-1, (heads, 8))).transpose(1, 2)
    wide = [t.repeat_interleave(heads // kv_heads, 1) for t in (k, v)]
    expected = scaled_dot_product_attention(q, *wide, attn_mask=None if mask is None else mask[:, None])
    torch.testing.assert_close(block.attention(x, k, v, mask), block.o(expected.transpose(1, 2).flatten(2)))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20)
def test_the_cpus_own_attention_is_the_fused_one(batch, queries, keys):
    q, k, v = torch.randn(batch, 2, queries, 8), *torch.randn(2, batch, 2, keys, 8)
    mask = torch.rand(batch, 1, queries, keys) > 0.4
    mask[..., 0] = True
    for m in (None, mask):
        torch.testing.assert_close(attend(q, k, v, m), scaled_dot_product_attention(q, k, v, attn_mask=m))


def test_masked_media_make_no_difference():
    block = a_block()
    hidden, (k, v) = torch.randn(1, 5, D), seen(block, 1, 7)
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    assert torch.equal(block(hidden, k, v, mask, None), block(hidden, k, v, None, None))
    mask[..., 4:] = False
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 4:], other_v[:, :, 4:] = 99.0, -99.0
    assert torch.equal(block(hidden, k, v, mask, None), block(hidden, other_k, other_v, mask, None))
    torch.testing.assert_close(block(hidden, k, v, mask, None), block(hidden, k[:, :, :4], v[:, :, :4], None, None))


def test_the_order_of_media_makes_no_difference():
    """Where an embedding stands is said by the media projection alone."""
    block = a_block()
    hidden, (k, v) = torch.randn(2, 5, D), seen(block, 2, 7)
    order = torch.randperm(7)
    torch.testing.assert_close(
        block(hidden, k, v, None, None), block(hidden, k[:, :, order], v[:, :, order], None, None)
    )


def test_tokens_do_not_mix():
    block = a_block()
    hidden, (k, v) = torch.randn(1, 5, D), seen(block, 1, 7)
    other = hidden.clone()
    other[:, 2] = torch.randn(D)
    one, two = block(hidden, k, v, None, None), block(other, k, v, None, None)
    keep = [0, 1, 3, 4]
    torch.testing.assert_close(one[:, keep], two[:, keep])
    assert not torch.allclose(one[:, 2], two[:, 2])


def test_blind_tokens_send_no_gradient_and_no_nan():
    block = a_block()
    hidden = torch.randn(2, 3, D, requires_grad=True)
    sees = torch.tensor([[False, True, True], [False, False, False]])
    out = block(hidden, *seen(block, 2, 7), None, sees)
    grads = torch.autograd.grad(out[~sees].sum(), [hidden, *block.parameters()], allow_unused=True, retain_graph=True)
    assert torch.equal(grads[0], (~sees)[..., None].expand(-1, -1, D).float())
    assert all(grad is None or not grad.any() for grad in grads[1:])
    grads = torch.autograd.grad(out[sees].square().sum(), [hidden, *block.parameters()], allow_unused=True)
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)
