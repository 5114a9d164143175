import pytest
import torch

from finetune.batches import Batches, FrozenText
from finetune.below import MOST, Below, gives_tensors, passing_on
from finetune.config import BatchConfig
from finetune.loss import learnt_loss
from mmlm.decoder import find_layers


def calls(layers):
    """A list that gets an entry for each run of the first of the layers' attention."""
    runs = []
    layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_texts_that_come_again_skip_the_layers_below(tiny_model, open_gates, cache, encoded):
    open_gates(tiny_model)
    batches = Batches(tiny_model, cache, encoded(8, 2), BatchConfig(images=4, per_image=2), seed=0)
    first = learnt_loss(tiny_model, tiny_model, batches[0])[0]
    runs = calls(find_layers(tiny_model.decoder))
    again = learnt_loss(tiny_model, tiny_model, batches[0])[0]
    assert runs == []
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_the_decoder_is_whole_again_afterwards(tiny_model, cache, encoded):
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = tiny_model.decoder(input_ids=ids).logits
        batches = Batches(tiny_model, cache, encoded(8, 2), BatchConfig(images=4, per_image=2), seed=0)
        learnt_loss(tiny_model, tiny_model, batches[0])
        assert torch.equal(tiny_model.decoder(input_ids=ids).logits, before)


def test_layers_are_whole_again_after_an_error(tiny_decoder):
    layers = find_layers(tiny_decoder())
    with pytest.raises(RuntimeError, match="stop"), passing_on(layers):
        raise RuntimeError("stop")
    assert not any("forward" in vars(layer) for layer in layers)


def test_what_is_kept_is_bounded(tiny_model, encoded):
    below = Below(find_layers(tiny_model.decoder), tiny_model.config.layers[0])
    below.kept = {(n,): torch.zeros(1) for n in range(MOST)}
    frozen = FrozenText(tiny_model)
    frozen.below = below
    states = frozen.states(encoded(3))
    assert len(below.kept) == MOST
    assert states is not None and len(states) == 3


def test_decoders_of_mixtral_s_kind_can_hand_on(tiny_decoder):
    decoder = tiny_decoder()
    assert gives_tensors(decoder.get_decoder(), find_layers(decoder))
