"""On a CPU the decoder attends in plain products where that is the quicker, and says the same."""

import pytest
import torch

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


def test_it_is_what_it_was_after_an_error(make_model, tiny_decoder):
    model = make_model(decoder=tiny_decoder().to(torch.bfloat16))
    with pytest.raises(ZeroDivisionError), plain_attention(model, {"attention_mask": torch.ones(1, 2)}):
        raise ZeroDivisionError
    assert model.decoder.config._attn_implementation == "sdpa"
