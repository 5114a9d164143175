"""On a CPU the decoder attends in plain products where that is the quicker, and says the same."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.attention import MOST, plain_attention


def attending(model, tokens):
    """How the decoder attends to so many tokens."""
    with plain_attention(model, {"attention_mask": torch.ones(2, tokens)}):
        return model.decoder.config._attn_implementation


def test_short_texts_in_16_bits_are_attended_to_in_plain_products(make_model, tiny_decoder):
    half, whole = (make_model(decoder=tiny_decoder().to(dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert [attending(half, tokens) for tokens in (1, MOST, MOST + 1)] == ["eager", "eager", "sdpa"]
    assert attending(whole, 1) == "sdpa"
    half.decoder.set_attn_implementation("eager")
    assert attending(half, MOST + 1) == "eager"  # whoever chose it


def test_both_say_the_same(make_model):
    """In a dense decoder: a router may send a token elsewhere after the last bit of a difference."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = make_model(decoder=LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).to(torch.bfloat16))
    ids, mask = torch.randint(3, 200, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    found = []
    for batch in ({"attention_mask": mask}, {"attention_mask": torch.ones(1, MOST + 1)}):
        given = model.decoder.get_input_embeddings()(ids).detach().requires_grad_()
        with plain_attention(model, batch):
            logits = (
                model.decoder(inputs_embeds=given, attention_mask=mask, use_cache=False).logits[mask.bool()].float()
            )
            found.append((logits.detach(), torch.autograd.grad(logits.square().mean(), given)[0].float()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0.03, rtol=0.05)


def test_it_is_what_it_was_after_an_error(make_model, tiny_decoder):
    model = make_model(decoder=tiny_decoder().to(torch.bfloat16))
    with pytest.raises(ZeroDivisionError), plain_attention(model, {"attention_mask": torch.ones(1, 2)}):
        raise ZeroDivisionError
    assert model.decoder.config._attn_implementation == "sdpa"
