"""Packed products say what the plain ones do, to rounding, and are used by `generate` alone."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from mmlm import packed
from mmlm.packed import FEW, LEAST, MANY, Fixed, Packing, able

needed = pytest.mark.skipif(not able(torch.float32), reason="this torch has no packed products")
WIDE = 2**13  # words: with a width of 64 as many weights as are worth it
assert LEAST[torch.float32] == 64 * WIDE


class Alone(nn.Module):
    """A decoder that is no more than an output embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, WIDE, bias=False).requires_grad_(False)
        self.packing = Packing(self, [])

    def get_output_embeddings(self):
        return self.head


@pytest.fixture
def alone():
    return Alone()


@pytest.fixture
def head(alone):
    return alone.head


@pytest.fixture
def packing(alone):
    return alone.packing


def used(packing, product):
    return next(its for its in packing.products if its.product is product).kept is not None


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(4,), (8, 1), (2, 3, 2), (MANY,)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_plain_product(rows, dtype, bias, head, packing):
    if not able(dtype):
        pytest.skip(f"none in {dtype}")
    if bias:
        head.bias = nn.Parameter(torch.randn(WIDE), requires_grad=False)
    head.to(dtype)
    x = torch.randn(*rows, 64).to(dtype)
    with packing():
        made = head(x)
    assert used(packing, head)
    exact = linear(x.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    plain = (linear(x, head.weight, head.bias).double() - exact).abs().max()
    for its in (made, Fixed(head.weight, head.bias)(x)):
        assert its.shape == (*rows, WIDE) and its.dtype == dtype
        assert (its.double() - exact).abs().max() <= 2 * plain


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_not_used_where_it_gains_nothing(dtype, head, packing):
    head.to(dtype)(torch.randn(8, 64, dtype=dtype))  # not generating
    for rows in (FEW[dtype] - 1, MANY + 1):
        x = torch.randn(rows, 64, dtype=dtype)
        with packing():
            assert torch.equal(head(x), linear(x, head.weight))
        fixed = Fixed(head.weight)
        assert torch.equal(fixed(x), linear(x, head.weight)) and fixed.packed is None
    for change in (nn.Module.double, lambda head: head.float().weight.requires_grad_()):
        change(head)
        with packing():
            head(torch.randn(8, 64, dtype=head.weight.dtype))
    assert not used(packing, head)
    assert not packed.pays(torch.empty(LEAST[dtype] // 64 - 1, 64, dtype=dtype))
    assert not packed.pays(torch.empty(WIDE, 64, dtype=dtype, device="meta"))


@needed
def test_what_changed_is_packed_again(head, packing):
    """Where torch does not count a write, too: PEFT merges so."""
    x = torch.randn(8, 64)

    def say():
        with packing():
            return head(x)

    before = say()
    head.weight.mul_(2)
    torch.testing.assert_close(say(), 2 * before)
    head.weight = nn.Parameter(-head.weight, requires_grad=False)
    torch.testing.assert_close(say(), -2 * before)
    head.weight.data += 1
    torch.testing.assert_close(say(), linear(x, head.weight))
    head.bfloat16().float()
    torch.testing.assert_close(say(), linear(x, head.weight), atol=1e-4, rtol=1e-4)
    head.to("meta")
    with packing():
        head(torch.randn(8, 64, device="meta"))
    assert not used(packing, head)


@needed
def test_within_one_generation_it_is_looked_at_once(head, packing):
    """What is written into the weights meanwhile is seen by the next."""
    x = torch.randn(8, 64)
    with packing():
        made = head(x)
        head.weight.data.neg_()
        assert torch.equal(head(x), made)
        with packing():
            torch.testing.assert_close(head(x), -made)


class Quantized(torch.Tensor):
    """A tensor of another kind in a plain layer, as torchao's are."""


def test_quantized_weights_are_not_packed(head, packing):
    head.weight = nn.Parameter(head.weight.as_subclass(Quantized), requires_grad=False)
    with packing():
        head(torch.randn(8, 64))
    assert not used(packing, head)


@needed
def test_hooks_are_called_and_what_they_wait_for_is_plain(head, packing):
    head.register_forward_hook(lambda _, __, made: -made)
    x = torch.randn(8, 64)
    with packing():
        assert torch.equal(head(x), -linear(x, head.weight))
    assert not used(packing, head)


@needed
def test_afterwards_a_product_is_as_it_was(head, packing):
    """However many generations there were at once, in however many threads; a forward that others gave it stays."""
    x, together = torch.randn(8, 64), Barrier(4)

    def generate(images):
        with packing(images):
            together.wait()
            made = head(x)
            together.wait()
        return torch.equal(made, linear(x, head.weight))

    with packing():
        packs = not torch.equal(head(x), linear(x, head.weight))  # in other bits
        with packing(False):
            assert torch.equal(head(x), linear(x, head.weight))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(generate, [True, False, True, False])) == [not packs, True, not packs, True]
    assert "forward" not in vars(head)
    with pytest.raises(KeyError), packing():
        raise KeyError
    assert "forward" not in vars(head)
    head.forward = own = lambda x: x
    with packing():
        assert head(x) is x
    assert head.forward is own


def test_no_more_than_the_machine_has_room_for(monkeypatch, tiny_decoder):
    """The output embedding before all, then as many of the layers' products as fit."""
    decoder = tiny_decoder()
    output = decoder.get_output_embeddings()
    every = Packing(decoder, decoder.model.layers).products
    assert every[0].product is output and len(every) == 1 + 6 * 4  # q, k, v, o; experts and routers are none

    class Memory:
        total = packed.SHARE * (output.weight.nbytes + every[1].product.weight.nbytes)

    monkeypatch.setattr(packed.psutil, "virtual_memory", Memory)
    assert [its.product for its in Packing(decoder, decoder.model.layers).products] == [
        output,
        decoder.model.layers[0].self_attn.q_proj,
    ]


@needed
def test_copies_and_pickles_pack_for_themselves(alone):
    x = torch.randn(8, 64)
    with alone.packing():
        made = alone.head(x)
    for other in (copy.deepcopy(alone), pickle.loads(pickle.dumps(alone))):
        assert not used(other.packing, other.head)
        other.head.weight.mul_(3)
        with other.packing():
            torch.testing.assert_close(other.head(x), 3 * made)
        assert used(other.packing, other.head)
    with alone.packing():
        assert torch.equal(alone.head(x), made)


@pytest.mark.parametrize("trouble", [AttributeError, NotImplementedError, RuntimeError])
def test_without_torchs_operators_the_plain_product_is_taken(trouble, head, packing, monkeypatch):
    def missing(weight):
        raise trouble("no such operator")

    monkeypatch.setattr(packed, "pack", missing)
    able.cache_clear()
    x = torch.randn(8, 64)
    try:
        with packing():
            assert torch.equal(head(x), linear(x, head.weight))
    finally:
        able.cache_clear()


def test_operators_that_say_something_else_are_not_taken(head, monkeypatch):
    monkeypatch.setattr(packed, "multiply", lambda x, weight, bias: torch.zeros(*x.shape[:-1], 96))
    able.cache_clear()
    try:
        assert not able(torch.float32)
    finally:
        able.cache_clear()


@needed
def test_generate_takes_it_where_every_row_has_an_image(make_model, tiny_decoder, open_gates, picture):
    """In others, logits are the bare decoder's, bit for bit, in a forward and in generate."""
    decoder = tiny_decoder(vocab_size=WIDE)
    bare = copy.deepcopy(decoder)
    model = open_gates(make_model(decoder=decoder)).eval()
    head = decoder.get_output_embeddings()
    ids = torch.randint(3, 200, (8, 5))
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    text = {"attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, bare(ids).logits)
    said, plain = (its.generate(ids, **text, **how) for its in (model, bare))
    assert all(torch.equal(one, other) for one, other in zip(said.logits, plain.logits, strict=True))
    assert not used(model.packing, head)
    batch = dict(model.processor([[picture(0)]] * 7 + [[]], ["<image>What is it?"] * 7 + ["What is that?"]))
    said = model.generate(**batch, **how)
    plain = bare.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **how)
    assert all(torch.equal(one[7], other[7]) for one, other in zip(said.logits, plain.logits, strict=True))
    assert not used(model.packing, head)
    batch = dict(model.processor([[picture(0)]] * 8, ["<image>What is it?"] * 8))
    seen = model.generate(**batch, **how)
    assert used(model.packing, head)
    assert not any("forward" in vars(module) for module in decoder.modules())
    model.packing = Packing(decoder, [])
    model.packing.products.clear()
    plain = model.generate(**batch, **how)
    assert torch.equal(seen.sequences, plain.sequences)
    for one, other in zip(seen.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@needed
def test_all_of_a_decoders_products_are_packed(make_model, tiny_decoder, open_gates, picture, monkeypatch):
    """And those of the blocks; what is said stays what it was, to rounding."""
    model = open_gates(make_model(decoder=tiny_decoder())).eval()
    batch = dict(model.processor([[picture(0)]] * 8, ["<image>What is it?"] * 8))
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**batch, **how)
    assert not any(used(model.packing, its.product) for its in model.packing.products)
    monkeypatch.setattr(packed, "LEAST", {torch.float32: 1})
    for block in model.adapter.blocks:
        block.kept = None
    seen = model.generate(**batch, **how)
    assert all(used(model.packing, its.product) for its in model.packing.products)
    for block in model.adapter.blocks:
        assert all(its.packed is not None for its in (block.kept.q, block.kept.o, block.kept.gate_up, block.kept.down))
    assert torch.equal(seen.sequences, plain.sequences)
    for one, other in zip(seen.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
