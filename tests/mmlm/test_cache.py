"""A cache with room to grow remembers what transformers' own does, and copies nothing for a token."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mmlm.cache import MORE, RoomyLayer, make_room

DOINGS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([1, 1, 1, 2, 5, MORE + 3])),
        st.tuples(st.just("crop"), st.integers(1, 4)),
        st.tuples(st.just("reorder"), st.integers(0, 5)),
        st.tuples(st.just("repeat"), st.just(2)),
        st.tuples(st.just("choose"), st.integers(0, 1)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    min_size=1,
    max_size=12,
)


def draw(rows, tokens, seed):
    return torch.randn(2, rows, 2, tokens, 3, generator=torch.Generator().manual_seed(seed))


def held(layer):
    return (layer.keys.clone(), layer.values.clone())


@given(DOINGS)
@torch.no_grad()
def test_it_remembers_what_the_plain_one_does(doings):
    """Whatever is cropped, chosen and repeated between; and what another, copied from it on the way, remembers."""
    plain, roomy, others = DynamicLayer(), RoomyLayer(), []
    for number, (what, how) in enumerate([("add", 3), *doings]):
        rows, tokens = (plain.keys.shape[0], plain.keys.shape[2]) if plain.is_initialized else (2, 0)
        if what == "add":
            for layer in (plain, roomy):
                layer.update(*draw(rows, how, number))
        elif what == "crop" and tokens > how:
            for layer in (plain, roomy):
                layer.crop(-how)
        elif what == "reorder":
            order = torch.randint(rows, (rows,), generator=torch.Generator().manual_seed(how))
            for layer in (plain, roomy):
                layer.reorder_cache(order)
        elif what == "repeat" and rows < 8:
            for layer in (plain, roomy):
                layer.batch_repeat_interleave(how)
        elif what == "choose" and rows > 1:
            for layer in (plain, roomy):
                layer.batch_select_indices(slice(how, rows - 1 + how))
        elif what == "fork":
            other = copy.copy(roomy)
            other.rooms = list(roomy.rooms)
            other.update(*draw(rows, 1, -1))
            others.append((other, held(other)))
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)
        assert roomy.get_seq_length() == plain.get_seq_length()
    for other, (keys, values) in others:
        assert torch.equal(other.keys, keys) and torch.equal(other.values, values)


@torch.no_grad()
def test_a_token_is_written_behind_the_others():
    layer = RoomyLayer()
    layer.update(*draw(2, 7, 0))
    where = layer.keys.data_ptr(), layer.values.data_ptr()
    for number in range(MORE):
        layer.update(*draw(2, 1, number))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == where
    layer.update(*draw(2, 1, 0))  # there was room for no more
    assert layer.keys.data_ptr() != where[0] and layer.keys.shape[2] == 7 + MORE + 1


@pytest.mark.parametrize("learns", [{"keys"}, {"values"}, {"queries"}, {"keys", "values", "queries"}])
def test_what_backward_needs_is_not_written_to(learns):
    """Whatever has a gradient, and whether or not the next token has one."""
    grads = []
    for layer in (DynamicLayer(), RoomyLayer()):
        with torch.no_grad():
            layer.update(*draw(1, 3, 0))
        names = {"keys": draw(1, 1, 1)[0], "values": draw(1, 1, 2)[0], "queries": draw(1, 1, 3)[0]}
        inputs = [names[name].requires_grad_() for name in sorted(learns)]
        keys, values = layer.update(names["keys"], names["values"])
        said = ((names["queries"] @ keys.mT).softmax(-1) @ values).square().sum()
        with torch.no_grad():
            layer.update(*draw(1, 1, 4))
        grads.append(torch.autograd.grad(said, inputs))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_what_was_written_in_inference_mode_grows_outside_of_it():
    layer = RoomyLayer()
    with torch.inference_mode():
        layer.update(*draw(1, 3, 0))
    with torch.no_grad():
        keys, _ = layer.update(*draw(1, 2, 1))
        assert torch.equal(keys, torch.cat([draw(1, 3, 0)[0], draw(1, 2, 1)[0]], -2))
        layer.reset()
        assert layer.get_seq_length() == 0 and layer.rooms == [None, None]


def test_only_an_empty_cache_of_plain_layers_gets_room(tiny_decoder):
    config = tiny_decoder().config
    cache = DynamicCache(config=config)
    make_room(cache)
    assert {type(layer) for layer in cache.layers} == {RoomyLayer}
    lazy = DynamicCache()
    make_room(lazy)
    lazy.update(*draw(1, 2, 0), 0)
    assert type(lazy.layers[0]) is RoomyLayer
    full = DynamicCache()
    full.update(*draw(1, 2, 0), 0)
    make_room(full)
    assert type(full.layers[0]) is DynamicLayer
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(sliding_window=4), DynamicLayer()]
    make_room(sliding)
    assert [type(layer) for layer in sliding.layers] == [DynamicSlidingWindowLayer, RoomyLayer]
    for other in (None, StaticCache(config=config, max_cache_len=8)):
        make_room(other)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generate_says_the_same_with_it_and_without(kwargs, tiny_model, picture, monkeypatch):
    """More tokens than there is room for at first."""
    how = {"max_new_tokens": MORE + 9, "min_new_tokens": MORE + 9, **kwargs}
    batch = dict(tiny_model.processor([[picture(0)], []], ["<image>What is it?", "And what is that over there?"]))
    said = []
    for room in (True, False):
        if not room:
            monkeypatch.setattr("mmlm.splice.make_room", lambda cache: None)
        torch.manual_seed(0)
        made = tiny_model.generate(**batch, return_dict_in_generate=True, output_logits=True, **how)
        assert (type(made.past_key_values.layers[0]) is RoomyLayer) == room
        said.append(made)
    assert torch.equal(said[0].sequences, said[1].sequences)
    for one, other in zip(said[0].logits, said[1].logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
