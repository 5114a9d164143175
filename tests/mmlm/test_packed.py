"""Packed products say what the plain ones do, to rounding, and are used for the tokens that `generate` adds alone."""

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
WIDE = 2**14  # words: with a width of 64 as many weights as are worth it
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

    @property
    def dtype(self):
        return torch.float32 if self.head is None else self.head.weight.dtype


@pytest.fixture
def alone():
    return Alone()


@pytest.fixture
def head(alone):
    return alone.head


@pytest.fixture
def packing(alone):
    return alone.packing


def rows_of(rows, dtype=torch.float32):
    """A token of so many rows."""
    return torch.randn(rows, 1, 64).to(dtype)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [4, 8, 13, MANY])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_plain_product(rows, dtype, bias, head, packing):
    if not able(dtype):
        pytest.skip(f"none in {dtype}")
    if bias:
        head.bias = nn.Parameter(torch.randn(WIDE), requires_grad=False)
    head.to(dtype)
    x = rows_of(rows, dtype)
    with packing():
        made = head(x)
    fixed = Fixed(head.weight, head.bias)
    assert list(packing.kept) == [head]
    exact = linear(x.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    plain = (linear(x, head.weight, head.bias).double() - exact).abs().max()
    for its in (made, fixed(x[:, 0])[:, None]):
        assert its.shape == (rows, 1, WIDE) and its.dtype == dtype
        assert (its.double() - exact).abs().max() <= 2 * plain
    assert fixed.packed is not None


@pytest.mark.parametrize("rows", [0, 1, MANY + 1])
def test_where_no_token_is_of_few_rows_nothing_is_attached(rows, head, packing):
    with packing(rows):
        assert "forward" not in vars(head)
        head(rows_of(8))
    assert not packing.kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_are_not_packed_and_many_are_not(dtype, head, packing):
    head.to(dtype)
    for rows in (0, 1, FEW[dtype] - 1, MANY + 1):
        x, fixed = rows_of(rows, dtype), Fixed(head.weight)
        with packing():
            assert torch.equal(head(x), linear(x, head.weight))
        assert torch.equal(fixed(x[:, 0]), linear(x[:, 0], head.weight))
        assert not packing.kept and fixed.packed is None


@pytest.mark.parametrize(
    "x", [torch.randn(1, 8, 64), torch.randn(8, 2, 64), torch.randn(8, 64), rows_of(8).requires_grad_()]
)
def test_prompts_and_what_has_gradients_are_not_packed(x, head, packing):
    with packing():
        made = head(x)
    assert torch.equal(made, linear(x, head.weight)) and made.requires_grad == x.requires_grad
    assert not packing.kept


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.double(),
        lambda head: head.half(),
        lambda head: head.weight.requires_grad_(),
        lambda head: head.register_forward_hook(lambda *_: None),
        lambda head: head.to("meta"),
        lambda head: setattr(head, "weight", nn.Parameter(head.weight.as_subclass(Quantized), requires_grad=False)),
        lambda head: setattr(head, "weight", nn.Parameter(head.weight[1:].clone(), requires_grad=False)),
        lambda head: setattr(head, "weight", nn.Parameter(head.weight.to_sparse(), requires_grad=False)),
        lambda head: delattr(head, "weight"),
    ],
    ids=["double", "half", "trained", "hooked", "meta", "quantized", "sharded", "sparse", "gone"],
)
def test_weights_that_are_not_worth_it_are_left_alone_and_forgotten(change, alone, head, packing, monkeypatch):
    with packing():
        head(rows_of(8))
    assert bool(packing.kept) == able(torch.float32)
    change(head)
    monkeypatch.setattr(Alone, "dtype", torch.float32)
    with packing():
        assert "forward" not in vars(head)
        assert not packing.kept
        assert packing.weights(head) is None
    alone.head = None
    with packing():
        assert packing.attached == []


class Quantized(torch.Tensor):
    """A tensor of another kind in a plain layer, as torchao's are."""


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_autocast_products_are_as_they_would_be(dtype, head, packing):
    """Inputs of one dtype, weights of the other."""
    head.to(dtype)
    fixed = Fixed(head.weight)
    able.cache_clear()
    for x in (rows_of(8), rows_of(8, torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16), packing():
            made, its = head(x), fixed(x[:, 0])
            assert torch.equal(made, linear(x, head.weight)) and torch.equal(its, linear(x[:, 0], head.weight))
            assert able(dtype), "asked first within autocast"
    assert not packing.kept and fixed.packed is None
    other = rows_of(8, torch.float32 if dtype == torch.bfloat16 else torch.bfloat16)
    with packing():
        head(rows_of(8, dtype))
        for run in (head, lambda x: fixed(x[:, 0])):
            with pytest.raises(RuntimeError, match="dtype"):  # as without
                run(other)


@needed
def test_what_changed_is_packed_again(head, packing):
    """Where torch does not count a write, too: PEFT merges so."""
    x = rows_of(8)

    def say():
        with packing():
            made = head(x)
        assert list(packing.kept) == [head]
        return made

    before = say()
    head.weight.mul_(2)
    torch.testing.assert_close(say(), 2 * before)
    head.weight = nn.Parameter(-head.weight, requires_grad=False)
    torch.testing.assert_close(say(), -2 * before)
    head.weight.data += 1
    torch.testing.assert_close(say(), linear(x, head.weight))
    for part in (slice(0, 8), slice(28, 36), slice(56, 64)):  # of a row, as one head's
        head.weight.data[:, part] = 0
        torch.testing.assert_close(say(), linear(x, head.weight))
    head.bfloat16().float()
    torch.testing.assert_close(say(), linear(x, head.weight), atol=1e-4, rtol=1e-4)
    packing.forget()
    assert not packing.kept


@needed
def test_within_one_generation_it_is_looked_at_once(head, packing):
    """What is written into the weights meanwhile is seen by the next."""
    x = rows_of(8)
    with packing():
        made = head(x)
        head.weight.data.neg_()
        assert torch.equal(head(x), made)
        with packing():
            torch.testing.assert_close(head(x), -made)


@needed
def test_afterwards_a_product_is_as_it_was(head, packing, monkeypatch):
    """However many generations there were at once, in however many threads; a forward that others gave it stays."""
    x, together = rows_of(8), Barrier(4)

    def generate(images):
        with packing(8 if images else 0):
            together.wait(60)
            made = head(x)
            together.wait(60)
        return made

    with packing():
        made = head(x)
        with packing(0):
            assert torch.equal(head(x), linear(x, head.weight))
        assert torch.equal(head(x), made)
    packing.forget()
    packs, plain = [], packed.pack
    with ThreadPoolExecutor(4) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "pack", lambda weight: packs.append(1) or plain(weight))
        for its, images in zip(threads.map(generate, [True, False, True, False]), [True, False] * 2, strict=True):
            assert torch.equal(its, made if images else linear(x, head.weight))
    assert len(packs) == 1
    assert "forward" not in vars(head)
    with pytest.raises(KeyError), packing():
        raise KeyError
    monkeypatch.setattr(packed, "memory", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), packing():
        pass
    monkeypatch.undo()
    assert "forward" not in vars(head) and packing.inside == 0
    head.forward = own = lambda x: x
    with packing():
        assert head(x) is x
    assert head.forward is own


@needed
def test_what_another_decoder_says_meanwhile_is_its_own():
    """One that is called within a generation of the first, while another thread generates with it."""
    first, second = Alone(), Alone()
    x = rows_of(8)
    with first.packing():
        with ThreadPoolExecutor(1) as thread:
            thread.submit(second.packing.attach).result()
        assert torch.equal(second.head(x), linear(x, second.head.weight)) and not second.packing.kept
        first.head(x)
        assert first.packing.kept
        second.packing.detach()


@needed
def test_no_more_than_the_machine_has_room_for(monkeypatch, tiny_decoder):
    """The output embedding before all, then as many of the layers' products as fit."""
    monkeypatch.setattr(packed, "LEAST", {torch.float32: 1})
    decoder = tiny_decoder().requires_grad_(False)
    packing, output = Packing(decoder, decoder.model.layers), decoder.get_output_embeddings()
    every = list(packing.products())
    assert every[0] is output and len(every) == 1 + 6 * 4  # q, k, v, o; experts and routers are none
    monkeypatch.setattr(packed, "memory", lambda: packed.SHARE * (output.weight.nbytes + every[1].weight.nbytes))
    assert list(packing.products()) == [output, decoder.model.layers[0].self_attn.q_proj]


@pytest.mark.parametrize(("limit", "known"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_containers_memory_is_what_it_may_have(limit, known, tmp_path, monkeypatch):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(packed, "LIMITS", (str(tmp_path / "memory.max"),))
    packed.memory.cache_clear()
    try:
        assert packed.memory() == (known or packed.psutil.virtual_memory().total)
    finally:
        packed.memory.cache_clear()


@needed
def test_copies_and_pickles_pack_for_themselves(alone):
    x = rows_of(8)
    with alone.packing():
        made = alone.head(x)
    for other in (copy.deepcopy(alone), pickle.loads(pickle.dumps(alone))):
        assert not other.packing.kept
        other.head.weight.mul_(3)
        with other.packing():
            torch.testing.assert_close(other.head(x), 3 * made)
        assert list(other.packing.kept) == [other.head]
    with alone.packing():
        assert torch.equal(alone.head(x), made)
        other = copy.deepcopy(alone)
    for _ in range(2):  # the first finds the forward that was copied, and leaves none
        with other.packing():
            torch.testing.assert_close(other.head(x), made)
        assert "forward" not in vars(other.head)


@pytest.mark.parametrize("trouble", [AttributeError, NotImplementedError, RuntimeError])
def test_without_torchs_operators_the_plain_product_is_taken(trouble, head, packing, monkeypatch):
    def missing(weight):
        raise trouble("no such operator")

    monkeypatch.setattr(packed, "pack", missing)
    able.cache_clear()
    x = rows_of(8)
    try:
        with packing():
            assert torch.equal(head(x), linear(x, head.weight))
        assert torch.equal(Fixed(head.weight)(x[:, 0]), linear(x[:, 0], head.weight))
    finally:
        able.cache_clear()


def test_operators_that_say_something_else_are_not_taken(monkeypatch):
    monkeypatch.setattr(packed, "multiply", lambda x, weight, bias: torch.zeros(*x.shape[:-1], 96))
    able.cache_clear()
    try:
        assert not able(torch.float32)
    finally:
        able.cache_clear()


# -- in a model -------------------------------------------------------------------------------------------------------

HOW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
HOW |= {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def whole(make_model, tiny_decoder, open_gates, monkeypatch):
    """A model, all products of which are packed if any may be."""
    monkeypatch.setattr(packed, "LEAST", {torch.float32: 1})
    return open_gates(make_model(decoder=tiny_decoder())).eval()


@needed
def test_generate_takes_it_where_every_row_has_an_image(whole, tiny_decoder, picture):
    """In others, logits are the bare decoder's, bit for bit, in a forward and in generate."""
    bare = tiny_decoder()
    ids = torch.randint(3, 200, (8, 5))
    text = {"attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids).logits, bare(ids).logits)
    said, plain = (its.generate(ids, **text, **HOW) for its in (whole, bare))
    assert all(torch.equal(one, other) for one, other in zip(said.logits, plain.logits, strict=True))
    batch = dict(whole.processor([[picture(0)]] * 7 + [[]], ["<image>What is it?"] * 7 + ["What is that?"]))
    said = whole.generate(**batch, **HOW)
    plain = bare.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **HOW)
    assert all(torch.equal(one[7], other[7]) for one, other in zip(said.logits, plain.logits, strict=True))
    assert not whole.packing.kept
    one = whole.processor(picture(0), "<image>What is it?")
    whole.generate(**one, **HOW)
    assert not whole.packing.kept, "one row is as fast without"
    for more in ({"num_beams": 4}, {"num_return_sequences": 4, "do_sample": True}):
        whole.generate(**one, **HOW | more)
        assert whole.packing.kept
        whole.packing.forget()


@needed
def test_all_of_a_decoders_products_are_packed(whole, picture, monkeypatch):
    """And those of the blocks; what is said stays what it was, to rounding."""
    batch = dict(whole.processor([[picture(0)]] * 8, ["<image>What is it?"] * 8))
    seen = whole.generate(**batch, **HOW)
    assert len(whole.packing.kept) == 1 + 6 * 4
    assert not any("forward" in vars(module) for module in whole.decoder.modules())
    for block in whole.adapter.blocks:
        assert all(its.packed is not None for its in (block.kept.q, block.kept.o, block.kept.gate_up, block.kept.down))
        block.kept = None
    assert whole.train().eval().packing.kept == {}
    monkeypatch.setattr(packed, "LEAST", {})
    plain = whole.generate(**batch, **HOW)
    assert not whole.packing.kept
    assert torch.equal(seen.sequences, plain.sequences)
    for one, other in zip(seen.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@needed
def test_within_autocast_it_generates(whole, picture):
    batch = dict(whole.processor([[picture(0)]] * 8, ["<image>What is it?"] * 8))
    with torch.autocast("cpu", torch.bfloat16):
        whole.generate(**batch, **HOW)
        with torch.no_grad():
            assert whole(**batch).logits.isfinite().all()
    assert not whole.packing.kept
