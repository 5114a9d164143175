"""Prefixes: what is kept of text before the image is what the decoder would make of it again."""

import pytest
import torch
from families import small
from hypothesis import given
from hypothesis import strategies as st

from mmlm.experts import use_padded_experts
from mmlm.marked import Marked
from mmlm.prefix import Prefixes, blind


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3"])
def decoder(request, tiny_decoder):
    """Mixtral's, and one whose keys are wider than its values. In fp32 a router may be in doubt between two experts:
    which it takes then depends on how sums are rounded."""
    decoder = tiny_decoder() if request.param == "mixtral" else small(request.param)
    use_padded_experts(decoder)  # transformers' own take no doubles
    return decoder.double()


@given(before=st.integers(0, 9), seeing=st.integers(0, 9), learnt=st.integers(0, 9))
def test_blind_ends_before_the_image_and_before_what_is_foretold(before, seeing, learnt):
    length = before + seeing
    if length > learnt:
        count = blind(
            Marked(list(range(length)), [-1] * before + [0] * seeing, ((length - learnt, length),) * bool(learnt))
        )
        assert count == min(before, length - learnt - 1)


def test_a_row_without_a_prefix_remembers_nothing(decoder):
    prefixes = Prefixes(decoder)
    layers = prefixes.cache([(1, 2, 3), ()], 5).layers
    assert prefixes.kept.keys() == {((1, 2, 3),)}
    for layer in layers:
        assert layer.keys.shape[2] == 5 and not layer.keys[1].any() and not layer.keys[0, :, :2].any()
        assert layer.keys[0, :, 2:].any(-1).all()
        assert layer.keys.shape[:3] == layer.values.shape[:3]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=5),
    least=st.integers(0, 40),
)
def test_rests_go_on_as_the_whole(decoder, lengths, least):
    drawn = torch.Generator().manual_seed(sum(map(sum, lengths)))
    texts = [
        tuple(tuple(torch.randint(1, 250, (count,), generator=drawn).tolist()) for count in both) for both in lengths
    ]
    with torch.no_grad():
        rests = decoder(
            **Prefixes(decoder).rests(texts, (least if any(before for before, _ in texts) else 0, least))
        ).logits
        assert rests.shape[1] == max(least, *(count for _, count in lengths))
        for (before, rest), logits in zip(texts, rests, strict=True):
            whole = decoder(input_ids=torch.tensor([before + rest])).logits[0, len(before) :]
            torch.testing.assert_close(logits[: len(rest)], whole, rtol=1e-3, atol=1e-3)


def test_the_rest_of_left_padded_rows_goes_on_as_the_whole(decoder):
    """Rows of several lengths, with more and fewer blind tokens."""
    rows = [Marked(list(range(1, 10)), [-1] * 6 + [0] * 3), Marked(list(range(20, 25)), [-1] * 3 + [0, 0])]
    rows.append(Marked([7, 8], [0, 0]))
    ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for row, text in enumerate(rows):
        ids[row, 9 - len(text.ids) :] = torch.tensor(text.ids)
        mask[row, 9 - len(text.ids) :] = 1
    places = (mask.cumsum(1) - 1).clamp_min(0)
    past = Prefixes(decoder).past(rows)
    width = past["past_key_values"].get_seq_length()
    assert width == 6, "three tokens of the first row see its image"
    with torch.no_grad():
        whole = decoder(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, width:]
        rest = decoder(input_ids=ids[:, width:], attention_mask=mask, position_ids=places[:, width:], **past).logits
    for row, text in enumerate(rows):
        torch.testing.assert_close(rest[row, -len(text.ids) :], whole[row, -len(text.ids) :])


def test_where_nothing_is_blind_there_is_no_past(decoder):
    prefixes = Prefixes(decoder)
    assert prefixes.past([Marked([1, 2], [0, 0]), Marked([1], [-1])]) == {}
    prefixes.usable = False
    assert prefixes.past([Marked([1, 2, 3], [-1, -1, 0])]) == {}


def test_decoders_that_keep_more_than_keys_and_values_are_told(tiny_decoder):
    assert Prefixes(tiny_decoder()).usable
    assert not Prefixes(tiny_decoder(sliding_window=8)).usable


def test_texts_are_where_the_decoder_is(tiny_decoder):
    """A model may be moved after something was kept. "meta" stands in for a device that this machine may not have."""
    decoder = tiny_decoder()
    prefixes = Prefixes(decoder)
    prefixes.cache([(1, 2, 3)], 3)
    decoder.to("meta")
    rests = prefixes.rests([((1, 2, 3), (4,))])
    cache = rests.pop("past_key_values")
    assert {tensor.device.type for tensor in rests.values()} == {"meta"}
    assert {layer.keys.device.type for layer in cache.layers} == {"meta"}
