"""What the floors count by hand is what torch counts, where a program does nothing needless."""

import pytest
import torch
from floors import Blocks, Counts, Phase, Rates, told
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig

from mmlm.adapter import whitened
from mmlm.block import GatedBlock, Whiten
from mmlm.config import fit_config

ROWS, TOKENS, NEW, MEDIA = 2, 12, 5, 7
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llamas(llama):
    return Counts.of(llama.config, None, torch.float32)


def products(run):
    """FLOPs of a run's products of weights."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in found.items() if operator in (torch.ops.aten.mm, torch.ops.aten.addmm))


def test_a_step_of_a_plain_decoder(llama, llamas):
    ids = torch.randint(300, (ROWS, TOKENS))
    given = llama.get_input_embeddings()(ids).requires_grad_()
    found = products(lambda: llama(inputs_embeds=given, labels=ids, use_cache=False).loss.backward())
    (phase,) = llamas.step(ROWS, TOKENS, 0, ROWS * TOKENS)
    looks = 3 * 3 * llamas.decoder.looks(ROWS * TOKENS * (TOKENS + 1) / 2)
    assert found == phase.flops - looks > 10 * looks


def test_generation_of_a_plain_decoder(llama, llamas):
    ids = torch.randint(1, 300, (ROWS, TOKENS))
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    found = products(lambda: llama.generate(ids, **how))
    phases = llamas.generation(ROWS, TOKENS, 0, NEW)
    pairs = TOKENS * (TOKENS + 1) / 2 + sum(range(TOKENS + 1, TOKENS + NEW))
    assert found == sum(phase.flops for phase in phases) - 3 * llamas.decoder.looks(ROWS * pairs)


def test_every_token_reads_all_weights_and_what_was_said(llama, llamas):
    weights = sum(m.weight.numel() for m in llama.modules() if isinstance(m, nn.Linear))
    prompt, *tokens = llamas.generation(1, TOKENS, 0, NEW)
    assert prompt.reads == 4 * weights and len(tokens) == NEW - 1
    assert [one.reads - prompt.reads for one in tokens] == [4 * 3 * 2 * 2 * 16 * (TOKENS + n) for n in range(NEW - 1)]


def test_a_gated_block():
    config = fit_config(MIXTRAL, 3, layers=[1])
    counts, block = Blocks(config), GatedBlock(config)
    assert counts.read + counts.media == sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))
    hidden = torch.randn(ROWS, TOKENS, 64, requires_grad=True)
    media = torch.randn(ROWS * MEDIA, 64, requires_grad=True)

    def step():
        k, v = (made(media).unflatten(-1, (-1, config.head_dim)) for made in (block.k, block.v))
        k, v = (x.unflatten(0, (ROWS, MEDIA)).transpose(1, 2) for x in (block.k_norm(k), v))
        block(hidden, k, v, None, None).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    N = ROWS * TOKENS
    needed = 6 * N * counts.read + 4 * N * counts.rotations + 6 * ROWS * MEDIA * counts.media
    assert counter.get_total_flops() == needed + 3 * counts.looks(N * MEDIA)


@pytest.mark.parametrize("cells", [10, 1000])
def test_the_media_projection_of_few_and_of_many(cells):
    counts = Blocks(fit_config(MIXTRAL, 3, layers=[1]))
    norm, product = Whiten(counts.C), nn.Linear(counts.C, counts.M)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        whitened(torch.randn(cells, counts.C), norm, product)
    with FlopCounterMode(display=False) as both:
        whitened(torch.randn(cells, counts.C), norm, product).sum().backward()
    assert forward.get_total_flops() == counts.projected(cells, 1)
    assert both.get_total_flops() == counts.projected(cells, 2)


def test_of_experts_those_count_that_a_token_takes():
    its = Counts.of(MIXTRAL, None, torch.bfloat16).decoder
    assert its.used(1) == its.attention + its.router + 2 * its.expert
    assert its.used(1) < its.used(2) < its.used(1000) == pytest.approx(its.attention + its.router + 8 * its.expert)
    assert its.products(3) == 2 * 3 * its.used(1)


def test_blocks_need_more_and_layers_below_them_less():
    plain, low, high = (
        Counts.of(MIXTRAL, adapter, torch.float32)
        for adapter in (None, *(fit_config(MIXTRAL, 3, layers=[at]) for at in (0, 2)))
    )
    (text,), (step, adamw), (above, _) = (its.step(ROWS, TOKENS, MEDIA, 4) for its in (plain, low, high))
    assert above.flops < step.flops > text.flops and above.reads < step.reads
    assert adamw == Phase("optimizer", 0, 16 * low.blocks.trained, 12 * low.blocks.trained)
    assert low.kept(ROWS, TOKENS, MEDIA, 4) > high.kept(ROWS, TOKENS, MEDIA, 4) > 8 * low.blocks.trained


def test_a_floor_is_what_takes_longer_phase_by_phase():
    can = Rates(product=100, read=10, copy=5)
    phases = [Phase("a", 200, 10), Phase("b", 100, 30, 10), Phase("b", 100, 5)]
    assert [phase.seconds(can) for phase in phases] == [2, 2 + 4, 1]
    assert told(phases, can) == {"a": {"seconds": 2, "by": "operations"}, "b": {"seconds": 7, "by": "bytes"}}
