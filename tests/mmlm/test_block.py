"""One gated block: exact where it must be, attention as the books have it, and the same when it is folded."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mmlm.block import GatedBlock, attend
from mmlm.config import AdapterConfig
from mmlm.weights import State

D, M = 32, 24


def a_block(heads=4, kv_heads=2, gate=0.8, seed=0, d=8):
    torch.manual_seed(seed)
    block = GatedBlock(
        AdapterConfig(hidden=D, media_dim=M, heads=heads, kv_heads=kv_heads, head_dim=d, ff_factor=1.5, layers=[0])
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
    media = torch.randn(rows * length, M)
    k, v = block.keys_values(block.k(media), block.v(media))
    return (x.unflatten(0, (rows, length)).transpose(1, 2).detach() for x in (k, v))


def fitted(block):
    """The block as calibration and training leave it: no weight of it is what it began as."""
    with torch.no_grad():
        for norm in (block.norm, block.ff_norm):
            norm.fit(torch.randn(200, D) @ torch.randn(D, D) + 5 * torch.randn(D))
        for weights in (block.norm, block.ff_norm, block.q_norm, block.k_norm):
            for weight in weights.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
        block.scale.copy_(torch.rand(D) + 0.5)
    return block


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
    for run in (block, block.folded(torch.float32)):
        out = run(hidden, k, v, None, sees)
        assert out.dtype == dtype
        assert torch.equal(out[~sees], hidden[~sees])
        assert torch.isfinite(out).all()


@given(scale=st.floats(1e-3, 1e3), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=20)
def test_with_gates_shut_all_come_out_as_they_went_in(scale, dtype):
    block = a_block(gate=0.0)
    hidden = (torch.randn(2, 5, D, dtype=torch.float64) * scale).to(dtype)
    for run in (block, block.folded(torch.float32)):
        assert torch.equal(run(hidden, *seen(block, 2, 7), None, None), hidden)


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
    """Of queries that are divided by the root of their width before."""
    q, k, v = torch.randn(batch, 2, queries, 8), *torch.randn(2, batch, 2, keys, 8)
    mask = torch.rand(batch, 1, queries, keys) > 0.4
    mask[..., 0] = True
    for m in (None, mask):
        torch.testing.assert_close(attend(q * 8**-0.5, k, v, m), scaled_dot_product_attention(q, k, v, attn_mask=m))


def test_many_scores_are_left_to_the_fused_kernel(monkeypatch):
    """With the same gradients."""
    block, hidden, grads = a_block(), torch.randn(2, 5, D, requires_grad=True), []
    k, v = seen(block, 2, 7)
    mask = torch.rand(2, 5, 7) > 0.4
    mask[..., 0] = True
    for most in (2**18, 0):
        monkeypatch.setattr("mmlm.block.SCORES", most)
        grads.append(torch.autograd.grad(block(hidden, k, v, mask, None).sin().sum(), [hidden, block.q.weight]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


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


@given(
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)]),
    d=st.sampled_from([4, 8, 24]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    masked=st.booleans(),
    fit=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_folded_it_is_as_near_to_the_exact_result(heads, d, shape, dtype, masked, fit, seed):
    """Against the block in fp32; in 16 bits folding rounds less often than the block does under autocast."""
    block = a_block(*heads, seed=seed, d=d)
    block = fitted(block) if fit else block
    rows, length, media = shape
    hidden, (k, v) = (torch.randn(rows, length, D) * 3).to(dtype), seen(block, rows, media)
    mask = torch.rand(rows, length, media) > 0.4 if masked else None
    sees = torch.rand(rows, length) > 0.3 if masked else None
    if mask is not None:
        mask[..., 0] = True
    with torch.no_grad():
        exact = block(hidden.float(), k, v, mask, sees)
        k, v = k.to(dtype), v.to(dtype)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            plain = block(hidden, k, v, mask, sees)
        folded = block.folded(dtype)(hidden, k, v, mask, sees)
    assert folded.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(folded, plain, atol=1e-4, rtol=1e-4)
    off = [(result.float() - exact).square().mean().sqrt() for result in (folded, plain)]
    assert (
        off[0] <= 1.5 * off[1] + torch.finfo(dtype).eps / 2 * exact.std() + 1e-5
    )  # of few numbers chance may be larger


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_folded_in_16_bits_little_is_added_as_finely_as_much(own, dtype):
    """Gates hardly open before a layer whose hidden states are small."""
    block = a_block(gate=0.01)
    block.scale.fill_(0.002)
    hidden, (k, v) = torch.randn(2, 3, D, dtype=torch.float64), seen(block, 2, 7)
    k, v = k.to(dtype), v.to(dtype)
    block.to(own)
    with torch.no_grad():
        exact = deepcopy(block).double()(hidden, k.double(), v.double(), None, None) - hidden
        added = block.folded(dtype)(hidden, k, v, None, None) - hidden
    assert (added - exact).norm() < 2.5 * torch.finfo(dtype).eps * exact.norm()


def stepped(optimizer, **settings):
    """A change: one step of an optimizer."""

    def step(block):
        for weight in block.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer(block.parameters(), lr=0.1, **settings).step()

    return step


def other_weights(block):
    return {name: weight + 0.5 for name, weight in block.state_dict().items()}


@torch.inference_mode()
def written_in_inference_mode(block):
    block.gate.weight.mul_(2)


def copied_into_data(block):
    """As averages of weights are swapped in by some: torch does not count it."""
    for weight in block.parameters():
        weight.data.copy_(weight.data + 0.5)


def new_data(block):
    for weight in block.parameters():
        weight.data = weight.data + 0.5


CHANGES = {
    "SGD": stepped(torch.optim.SGD),
    "Adam, one weight at a time": stepped(torch.optim.AdamW, foreach=False),
    "Adam, many": stepped(torch.optim.AdamW, foreach=True),
    "Adam, fused": stepped(torch.optim.AdamW, fused=True),
    "weights loaded": lambda block: block.load_state_dict(other_weights(block)),
    "weights assigned": lambda block: block.load_state_dict(other_weights(block), assign=True),
    "a gate": torch.no_grad()(lambda block: block.ff_gate.mul_(0.5)),
    "one value of a weight": torch.no_grad()(lambda block: block.down.weight[3, 5].add_(1)),
    "calibrated": fitted,
    "inference mode": written_in_inference_mode,
    "copied into .data": copied_into_data,
    "other .data": new_data,
    "another module": lambda block: setattr(block, "up", torch.nn.Linear(D, block.up.out_features, bias=False)),
    "to 16 bits": lambda block: block.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_weights_are_folded_anew(change, twice, dtype):
    block = a_block()
    hidden, (k, v) = torch.randn(2, 3, D), seen(block, 2, 7)
    k, v = k.to(dtype), v.to(dtype)
    for _ in range(1 + twice):
        before = block.folded(dtype)
        assert block.folded(dtype) is before
        was = before(hidden, k, v, None, None)
        change(block)
        after = block.folded(dtype)
        fresh = deepcopy(block)
        fresh.kept = None
        assert torch.equal(after(hidden, k, v, None, None), fresh.folded(dtype)(hidden, k, v, None, None))
        assert change is CHANGES["to 16 bits"] or not torch.equal(after(hidden, k, v, None, None), was)


@pytest.mark.parametrize("shape", [(64, 0), (1,), (), (512, 512), (300, 700), (4096, 8), (3, 5000)])
def test_samples_of_a_weight_lie_in_all_its_rows_and_columns(shape):
    """A write to an eighth of either is noticed."""
    weight = torch.zeros(shape)
    before = State([weight])
    assert before == State([weight])
    for side, length in enumerate(shape) if weight.numel() > 1 else ():
        wide = max(1, length // 8)
        for first in range(0, length - wide + 1, wide):
            weight.data.narrow(side, first, wide).fill_(1)
            assert before != State([weight])
            weight.data.zero_()


def test_each_dtype_is_folded_for_itself():
    block = a_block()
    assert [block.folded(dtype).o.weight.dtype for dtype in (torch.float32, torch.bfloat16, torch.float32)] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]


def test_threads_that_fold_at_once_all_get_theirs():
    block = a_block()
    dtypes = [torch.float32, torch.bfloat16] * 40
    with ThreadPoolExecutor(8) as threads:
        assert [folded.o.weight.dtype for folded in threads.map(block.folded, dtypes)] == dtypes


def test_in_training_nothing_folded_is_kept():
    block = a_block()
    folded = block.folded(torch.float32)
    products = folded.q, folded.gate_up, folded.o, folded.down
    assert not any(
        its.requires_grad for product in products for its in (product.weight, product.bias) if its is not None
    )
    block(torch.randn(1, 2, D), *seen(block, 1, 7), None, None)
    assert block.kept is None
    assert not any("kept" in name for name in block.state_dict())


def test_a_block_made_in_inference_mode_is_folded():
    with torch.inference_mode():
        block = a_block()
        was = block.folded(torch.float32)
        assert block.folded(torch.float32) is was
        block.gate.weight.mul_(2)  # of such tensors torch counts nothing
        assert block.folded(torch.float32) is not was
