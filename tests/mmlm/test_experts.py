"""Padded experts are transformers' own, and do not depend on who else is routed where."""

import copy
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import gelu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from mmlm.experts import NAME, padded_experts, use_padded_experts
from mmlm.grouped import alike


@pytest.fixture(scope="module")
def experts(tiny_decoder):
    """The experts of one layer (4 of 64 -> 96 -> 64), frozen."""
    decoder = tiny_decoder()
    decoder.requires_grad_(False)
    return decoder.model.layers[0].mlp.experts


@pytest.fixture(scope="module")
def wide(tiny_decoder):
    """The experts of one layer of a width and dtype: SmolLM2's, and one MKL sums in parts above 56 and 128."""

    @cache
    def build(dtype, width, inner):
        decoder = tiny_decoder(
            hidden_size=width, intermediate_size=inner, num_attention_heads=width // 64, num_hidden_layers=1
        )
        return decoder.to(dtype).model.layers[0].mlp.experts

    return build


def run(experts, implementation, *args):
    experts.config._experts_implementation, kept = implementation, experts.config._experts_implementation
    try:
        return experts(*args)
    finally:
        experts.config._experts_implementation = kept


@st.composite
def routings(draw):
    """Hidden states, different experts for each token (some may get none, one may get all), their weights."""
    tokens, k = draw(st.integers(1, 150)), draw(st.integers(1, 3))
    open_ = draw(st.lists(st.integers(0, 3), min_size=k, max_size=4, unique=True))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    picks = torch.stack([torch.randperm(len(open_), generator=random)[:k] for _ in range(tokens)])
    hidden = torch.randn(tokens, 64, generator=random)
    return hidden, torch.tensor(open_)[picks], torch.rand(tokens, k, generator=random)


@given(routings())
@settings(max_examples=40)
def test_padded_experts_are_the_eager_ones(experts, drawn):
    torch.testing.assert_close(run(experts, NAME, *drawn), run(experts, "eager", *drawn), atol=2e-4, rtol=1e-4)


@given(routings())
@settings(max_examples=15)
def test_padded_experts_send_back_the_same_gradients(experts, drawn):
    hidden, index, weights = drawn
    grads = []
    for implementation in (NAME, "eager"):
        inputs = [hidden.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = run(experts, implementation, inputs[0], index, inputs[1])
        grads.append(torch.autograd.grad(out.square().sum(), inputs))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)
    assert all(p.grad is None for p in experts.parameters())


@given(routings())
@settings(max_examples=15)
def test_experts_that_are_trained_get_the_eager_ones_gradients(experts, drawn):
    """As with LoRA on them. A padding row adds nothing."""
    hidden, index, weights = drawn
    grads = []
    for implementation in (NAME, "eager"):
        trained = copy.deepcopy(experts).requires_grad_()
        run(trained, implementation, hidden, index, weights).square().sum().backward()
        grads.append([trained.gate_up_proj.grad, trained.down_proj.grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


@given(routings(), st.integers(0, 2**16))
@settings(max_examples=40)
def test_what_a_token_gets_does_not_depend_on_the_others(experts, drawn, seed):
    """Bit for bit: it is what "blind is exact" rests on."""
    hidden, index, weights = drawn
    random = torch.Generator().manual_seed(seed)
    other = torch.stack([torch.randperm(4, generator=random)[: index.shape[1]] for _ in hidden])
    keep = torch.rand(len(hidden), generator=random) < 0.5
    mixed = torch.where(keep[:, None], index, other)
    one, two = run(experts, NAME, hidden, index, weights), run(experts, NAME, hidden, mixed, weights)
    assert torch.equal(one[keep], two[keep])


@pytest.mark.parametrize("widths", [(576, 1536), (512, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 16, 31, 64, 65, 150, 400, 800])
def test_it_does_not_depend_on_how_many_go_the_same_way(tokens, dtype, widths, wide):
    """At widths of real decoders: products of narrow matrices have the same bits however many rows there are."""
    experts = wide(dtype, *widths)
    hidden = torch.randn(tokens, widths[0], generator=torch.Generator().manual_seed(0)).to(dtype)
    index, weights = torch.tensor([[0, 1]]).repeat(tokens, 1), torch.full((tokens, 2), 0.5).to(dtype)
    with torch.no_grad():
        together = run(experts, NAME, hidden, index, weights)
        for same in {1, tokens // 3, tokens // 2, tokens - 1} - {0}:  # the others go another way
            parted = torch.where((torch.arange(tokens) < same)[:, None], index, index + 2)
            assert run(experts, NAME, hidden, parted, weights)[:same].equal(together[:same]), same


class Ungated(nn.Module):
    """Experts with no gate, 4 of 64 -> inner -> 64. Of gelu torch has other bits where it computes no vectors."""

    num_experts, has_gate, has_bias, has_post_expert_norm = 4, False, False, False
    is_transposed = _is_expert_parallel = False
    act_fn = staticmethod(partial(gelu, approximate="tanh"))

    def __init__(self, inner):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.up_proj = nn.Parameter(torch.randn(4, inner, 64, generator=random) / 8, requires_grad=False)
        self.down_proj = nn.Parameter(torch.randn(4, 64, inner, generator=random) / 8, requires_grad=False)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("inner", [96, 36])
@pytest.mark.parametrize("tokens", [3, 41, 1000])
def test_activations_do_not_depend_on_the_others_either(tokens, inner, threads):
    """torch gives each thread so many numbers, and computes the last few of them by other code."""
    experts, before = Ungated(inner), torch.get_num_threads()
    random = torch.Generator().manual_seed(tokens)
    hidden, weights = torch.randn(tokens, 64, generator=random), torch.rand(tokens, 2, generator=random)
    keep = torch.rand(tokens, generator=random) < 0.3
    keep[0] = True
    index = torch.stack([torch.randperm(4, generator=random)[:2] for _ in hidden])
    torch.set_num_threads(threads)
    try:
        made = []
        for _ in range(12):
            others = torch.stack([torch.randperm(4, generator=random)[:2] for _ in hidden])
            made.append(padded_experts(experts, hidden, torch.where(keep[:, None], index, others), weights)[keep])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(made[0], its) for its in made[1:])


def test_an_expert_that_is_chosen_twice(wide):
    """As a router of hashes may do it: its group has more rows than there are tokens."""
    experts = wide(torch.float32, 512, 1024)
    hidden, weights = torch.randn(14, 512, generator=torch.Generator().manual_seed(0)), torch.full((14, 4), 0.25)
    index = torch.zeros(14, 4, dtype=torch.int64)
    other = torch.where((torch.arange(14) < 1)[:, None], index, torch.arange(4))
    with torch.no_grad():
        assert run(experts, NAME, hidden, index, weights)[0].equal(run(experts, NAME, hidden, other, weights)[0])


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_few_tokens_of_other_dtypes(tokens, wide):
    """No token at all, states that are wider than the weights, indices of 32 bits."""
    experts = wide(torch.bfloat16, 576, 1536)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 576, generator=random, requires_grad=True)
    index = torch.rand(tokens, 4, generator=random).topk(2).indices.to(torch.int32)
    weights = torch.rand(tokens, 2, generator=random)
    made = run(experts, NAME, hidden, index, weights)
    assert made.shape == hidden.shape and made.dtype == hidden.dtype
    made.sum().backward()
    narrow = run(experts, "grouped_mm", hidden.detach().bfloat16(), index.long(), weights).float()
    torch.testing.assert_close(made, narrow, atol=0.02, rtol=0.02)


class Products(TorchDispatchMode):
    """Counts the calls of `grouped_mm`."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.ops.aten._grouped_mm.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("tokens", [2, 8, 60])
def test_of_frozen_weights_no_gradient_is_computed(tokens, trained, wide):
    """In backward one product of each of both layers; of trained weights one more."""
    experts = copy.deepcopy(wide(torch.float32, 576, 1536)).requires_grad_(trained)
    hidden = torch.randn(tokens, 576, requires_grad=True)
    index = torch.rand(tokens, 4).topk(2).indices
    with Products() as forward:
        made = run(experts, NAME, hidden, index, torch.ones(tokens, 2))
    with Products() as backward:
        made.sum().backward()
    assert forward.calls and backward.calls == forward.calls * (2 if trained else 1)


def test_padding_has_nothing_that_an_expert_was_not_sent():
    """Or in fp16 a token that is large for it would make its weights' gradients NaN."""
    experts = Ungated(96).half().requires_grad_()
    hidden = torch.full((4, 64), 0.5).half()
    hidden[0] = 2e4
    experts.up_proj.data[1] = 30
    padded_experts(experts, hidden, torch.tensor([[0], [1], [1], [1]]), torch.ones(4, 1)).float().sum().backward()
    assert experts.down_proj.grad[1].isfinite().all() and experts.up_proj.grad[1].isfinite().all()


def test_the_default_device_is_nothing_to_experts_of_a_cpu(wide):
    """As where a model of another device is made meanwhile."""
    experts = wide(torch.float32, 576, 1536)
    drawn = torch.randn(9, 576), torch.tensor([[0, 1]]).repeat(9, 1), torch.full((9, 2), 0.5)
    with torch.no_grad():
        expected = run(experts, NAME, *drawn)
        alike.cache_clear()
        with torch.device("meta"):
            assert run(experts, NAME, *drawn).equal(expected)


@pytest.mark.parametrize(("dtype", "inner"), [(torch.float64, 96), (torch.bfloat16, 92), (torch.float32, 90)])
def test_numbers_that_grouped_mm_does_not_take(dtype, inner, tiny_decoder):
    experts = tiny_decoder(intermediate_size=inner, num_hidden_layers=1).to(dtype).model.layers[0].mlp.experts
    random = torch.Generator().manual_seed(0)
    hidden, weights = torch.randn(70, 64, generator=random).to(dtype), torch.rand(70, 2, generator=random).to(dtype)
    index = torch.stack([torch.randperm(4, generator=random)[:2] for _ in hidden])
    with torch.no_grad():
        padded, eager = (run(experts, name, hidden, index, weights) for name in (NAME, "eager"))
        mixed = torch.where((torch.arange(70) < 30)[:, None], index, torch.tensor([0, 1]))
        assert run(experts, NAME, hidden, mixed, weights)[:30].equal(padded[:30])
    torch.testing.assert_close(padded, eager, atol=1e-2 if dtype == torch.bfloat16 else 1e-4, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_decoder_with_padded_experts_is_the_same(dtype, tiny_decoder, tokenizer):
    padded = tiny_decoder(initializer_range=0.05).to(dtype)
    eager = copy.deepcopy(padded)
    eager.set_experts_implementation("eager")
    assert padded.config._experts_implementation == NAME
    ids = tokenizer("What is it that we see here?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        one, other = padded(ids).logits.float(), eager(ids).logits.float()
    torch.testing.assert_close(one, other, atol=1e-4 if dtype == torch.float32 else 0.05, rtol=0.05)


def test_off_the_cpu_no_layer_waits_for_a_count(tiny_decoder):
    """On the meta device there is nothing to count."""
    decoder = tiny_decoder().to("meta")
    assert decoder.config._experts_implementation == NAME
    assert decoder(torch.zeros(2, 5, dtype=torch.int64, device="meta")).logits.shape[:2] == (2, 5)


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_decoders_without_experts_are_left_alone(kind):
    """No experts at all, a dense layer whose weights have the same names."""
    config = AutoConfig.for_model(kind, **SMALL, num_key_value_heads=2, vocab_size=50, pad_token_id=0)
    decoder = AutoModelForCausalLM.from_config(config)
    before = decoder.config._experts_implementation
    use_padded_experts(decoder)
    assert decoder.config._experts_implementation == before
    decoder(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt_oss", {"num_local_experts": 4}),  # with biases, and transposed
        (
            "nemotron_h",
            {"n_routed_experts": 4, "moe_intermediate_size": 32, "layer_types": ["full_attention", "moe"]},
        ),  # ungated
    ],
)
@torch.no_grad()
def test_experts_of_other_kinds_are_padded_too(kind, fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, num_key_value_heads=2, vocab_size=50, num_experts_per_tok=2, **fields)
    decoder = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in decoder.named_parameters():
        if "bias" in name:
            parameter.normal_()
    decoder.set_experts_implementation("eager")
    ids = torch.arange(40)[None]
    eager = decoder(ids).logits
    use_padded_experts(decoder)
    assert decoder.config._experts_implementation == NAME
    torch.testing.assert_close(decoder(ids).logits, eager, atol=1e-4, rtol=1e-4)
