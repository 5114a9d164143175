"""A packed output embedding says what the plain one does, to rounding, and is used by `generate` alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from mmlm import packed
from mmlm.packed import FEW, MANY, Packed, able, packing

needed = pytest.mark.skipif(not able(torch.float32), reason="this torch has no packed products")
WIDE = 2**14  # words: with a width of 64 as many weights as are worth it


@pytest.fixture
def head():
    torch.manual_seed(0)
    product = nn.Linear(64, WIDE, bias=False).requires_grad_(False)
    vars(product)["forward"] = Packed(product)
    return product


def used(product):
    return vars(product)["forward"].kept is not None


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(FEW,), (8, 1), (2, 3, 2), (MANY,)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_plain_product(rows, dtype, bias, head):
    if not able(dtype):
        pytest.skip(f"none in {dtype}")
    if bias:
        head.bias = nn.Parameter(torch.randn(WIDE), requires_grad=False)
    head.to(dtype)
    x = torch.randn(*rows, 64).to(dtype)
    with packing():
        made = head(x)
    assert used(head) and made.shape == (*rows, WIDE) and made.dtype == dtype
    exact = linear(x.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    error, plain = ((its.double() - exact).abs().max() for its in (made, linear(x, head.weight, head.bias)))
    assert error <= 2 * plain


@needed
def test_it_is_not_used_where_it_gains_nothing(head):
    head(torch.randn(8, 64))  # not generating
    with packing():
        head(torch.randn(FEW - 1, 64))
        head(torch.randn(MANY + 1, 64))
        head.double()(torch.randn(8, 64, dtype=torch.float64))
        head.float().weight.requires_grad_()
        head(torch.randn(8, 64))
    assert not used(head)


@needed
def test_what_changed_is_packed_again(head):
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
    assert not used(head)


@needed
def test_within_one_generation_it_is_looked_at_once(head):
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


def test_quantized_weights_are_not_packed(head):
    head.weight = nn.Parameter(head.weight.as_subclass(Quantized), requires_grad=False)
    with packing():
        head(torch.randn(8, 64))
    assert not used(head)


@needed
def test_copies_and_pickles_pack_for_themselves(head):
    x = torch.randn(8, 64)
    with packing():
        made = head(x)
        for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert not used(other) and other.state_dict().keys() == {"weight"}
            other.weight.mul_(3)
            torch.testing.assert_close(other(x), 3 * made)
        assert torch.equal(head(x), made)


@pytest.mark.parametrize("trouble", [AttributeError, NotImplementedError, RuntimeError])
def test_without_torchs_operators_the_plain_product_is_taken(trouble, head, monkeypatch):
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
def test_generate_takes_it_for_images_alone(make_model, tiny_decoder, open_gates, picture):
    """Without one, logits are the bare decoder's, bit for bit, in a forward and in generate."""
    decoder = tiny_decoder(vocab_size=WIDE)
    bare = copy.deepcopy(decoder)
    model = open_gates(make_model(decoder=decoder)).eval()
    head = decoder.get_output_embeddings()
    ids = torch.randint(3, 200, (8, 5))
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    text = {"attention_mask": torch.ones_like(ids), "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, bare(ids).logits)
    said, plain = (its.generate(ids, **text, **how) for its in (model, bare))
    assert all(torch.equal(one, other) for one, other in zip(said.logits, plain.logits, strict=True))
    assert not used(head)
    batch = dict(model.processor([[picture(0)]] * 8, ["<image>What is it?"] * 8))
    seen = model.generate(**batch, **how)
    assert used(head)
    del head.forward
    assert torch.equal(seen, model.generate(**batch, **how))
