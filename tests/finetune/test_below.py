import pytest
import torch

from finetune.below import Below, gives_tensors, passing_on
from finetune.config import BatchConfig
from finetune.loss import learnt_loss
from mmlm.decoder import find_layers


def calls(layers):
    """A list that gets an entry for each run of the first of the layers' attention."""
    runs = []
    layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_texts_that_come_again_skip_the_layers_below(tiny_model, open_gates, cache, encoded, collated):
    open_gates(tiny_model)
    batches = collated(tiny_model, cache, encoded(8, 2), BatchConfig(images=4, per_image=2))
    first = learnt_loss(tiny_model, tiny_model, batches[0])[0]
    runs = calls(find_layers(tiny_model.decoder))
    again = learnt_loss(tiny_model, tiny_model, batches[0])[0]
    assert runs == []
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_the_decoder_is_whole_again_afterwards(tiny_model, cache, encoded, collated):
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = tiny_model.decoder(input_ids=ids).logits
        batches = collated(tiny_model, cache, encoded(8, 2), BatchConfig(images=4, per_image=2))
        learnt_loss(tiny_model, tiny_model, batches[0])
        assert torch.equal(tiny_model.decoder(input_ids=ids).logits, before)


def test_layers_are_whole_again_after_an_error(tiny_decoder):
    layers = find_layers(tiny_decoder())
    with pytest.raises(RuntimeError, match="stop"), passing_on(layers):
        raise RuntimeError("stop")
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.fixture(scope="module")
def wide_model(make_model, tiny_decoder):
    """bf16, and as wide as SmolLM2: narrow products do not depend on how many rows there are."""
    wide = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    decoder = tiny_decoder(**wide, num_hidden_layers=2, initializer_range=0.02)
    return make_model(decoder.bfloat16(), layers=[1])


def test_states_do_not_depend_on_what_they_are_computed_beside(wide_model):
    """What is new in a batch is other texts in a run that was resumed than in one that was not."""
    drawn = torch.Generator().manual_seed(0)

    def text(before, rest):
        return tuple(tuple(torch.randint(1, 259, (count,), generator=drawn).tolist()) for count in (before, rest))

    for one in (text(14, 9), text(14, 22), text(0, 7), text(3, 60)):
        (alone,) = Below(wide_model)([one])
        assert alone.shape == (len(one[1]), 576)
        for others in (2, 7, 29):
            mixed = [
                text(int(n) % 29, 1 + int(n)) for n in torch.randint(0, 40, (others - others // 2,), generator=drawn)
            ]
            company = mixed + [text(len(one[0]), len(one[1])) for _ in range(others // 2)]
            company.insert(others // 2, one)
            assert Below(wide_model)(company)[others // 2].equal(alone)


def test_texts_in_three_parts_share_what_their_prompts_end_with(tiny_model):
    """Their states are those of the whole, also where little is kept; an answer of one token, the last, has none."""
    below = Below(tiny_model)
    before, seeing = tuple(range(1, 9)), (20, 21, 22)
    texts = [(before, seeing, answer) for answer in ((30,), (31, 32), (), tuple(range(40, 56)))]
    whole = Below(tiny_model)([(before, seeing + answer) for _, _, answer in texts])
    assert not below.keeps(texts)
    for states, wanted in zip(below.states(texts), whole, strict=True):
        torch.testing.assert_close(states, wanted)
    assert below.keeps(texts) and len(below.kept) == 4  # one prompt, three answers
    below.most = 2
    assert [len(states) for states in below.states(texts[::-1])] == [19, 3, 5, 4]


def test_states_in_three_parts_do_not_depend_on_company_either(wide_model):
    drawn = torch.Generator().manual_seed(1)

    def text(*counts):
        return tuple(tuple(torch.randint(1, 259, (count,), generator=drawn).tolist()) for count in counts)

    one = text(14, 5, 13)
    (alone,) = Below(wide_model).states([one])
    company = [text(14, 5, 1 + n % 17) for n in range(60)]
    assert Below(wide_model).states([*company, one])[-1].equal(alone)


def test_what_is_kept_is_the_rest_of_one_prefix(tiny_model):
    """The same tokens with another of them blind are another text."""
    below = Below(tiny_model)
    ids = tuple(range(1, 12))
    whole, rest = below([((), ids), (ids[:5], ids[5:])])
    assert len(whole) == 11 and len(rest) == 6 and len(below.kept) == 2
    torch.testing.assert_close(whole[5:], rest)
    assert [len(states) for states in below([(ids[:5], ids[5:]), ((), ids)])] == [6, 11]


def test_what_stood_in_for_a_layers_forward_stands_again(tiny_decoder):
    """accelerate hooks layers so, to bring their weights in from elsewhere."""
    layers = find_layers(tiny_decoder())
    own = layers[0].forward = layers[0].forward
    with passing_on(layers):
        assert layers[0].forward is not own
    assert layers[0].forward is own and "forward" not in vars(layers[1])


def test_decoders_of_mixtral_s_kind_can_hand_on(tiny_decoder):
    decoder = tiny_decoder()
    assert gives_tensors(decoder.get_decoder(), find_layers(decoder))
