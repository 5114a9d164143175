"""Logits of some tokens: the same as among all."""

import torch

from mmlm.logits import logits_only


def test_logits_are_whole_again_afterwards(tiny_decoder):
    decoder = tiny_decoder()
    ids = torch.arange(12).view(2, 6)
    whole = decoder(input_ids=ids).logits
    where = torch.zeros(2, 6, dtype=torch.bool)
    where[0, 2] = where[1, 5] = True
    with logits_only(decoder, where):
        some = decoder(input_ids=ids).logits
    assert some.shape == (1, 2, whole.shape[-1])
    torch.testing.assert_close(some[0], whole[where])
    assert decoder(input_ids=ids).logits.equal(whole)
