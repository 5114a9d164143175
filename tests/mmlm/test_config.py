"""The adapter's config on disk, and where blocks are placed."""

import ast
import inspect
import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from mmlm.config import FIELDS, AdapterConfig, fit_config, place_blocks


def test_a_saved_config_is_the_same_again(tmp_path):
    config = AdapterConfig(decoder="a/b", layers=[1, 2], heads=4, kv_heads=2, fingerprint={"decoder": "é"}, system="")
    config.save(tmp_path / "c.json")
    assert AdapterConfig.load(tmp_path / "c.json") == config


def changed(change, folder):
    """The path of a saved config with some fields changed by hand."""
    path = folder / "config.json"
    AdapterConfig().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99 unknown to this mmlm"),
        ({"format": None}, "format None"),
        ({"colour": "red"}, r"fields \['colour'\] unknown"),
    ],
)
def test_configs_of_other_versions_are_refused(change, words, tmp_path):
    path = changed(change, tmp_path)
    with pytest.raises(ValueError, match=f"config.json: {words}.*upgrade mmlm"):
        AdapterConfig.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00"])
def test_what_is_no_config_is_refused_by_name(content, tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.json"):
        AdapterConfig.load(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attend": "none"}, "attend='none'"),
        ({"detail": "medium"}, "detail='medium'"),
        ({"heads": 9, "kv_heads": 2}, "heads=9 is no multiple of kv_heads=2"),
    ],
)
def test_impossible_settings_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        AdapterConfig(**fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": None}, "layers=None: takes list"),
        ({"layers": [3, 1]}, "must be in order"),
        ({"layers": [-1, 1]}, "from 0"),
        ({"layers": ["1"]}, "layers="),
        ({"fingerprint": None}, "fingerprint=None"),
        ({"fingerprint": {"decoder": 3}}, "fingerprint="),
        ({"attend": "sideways"}, "attend='sideways'"),
        ({"attend": ["all"]}, "attend="),
        ({"heads": True}, "heads=True: takes int"),
        ({"channels": [8, -8]}, "channels="),
        ({"tokens": {"overview": [[1, -1]]}}, "tokens: overview"),
        ({"decoder": None}, "decoder=None: takes str"),
    ],
    ids=str,
)
def test_damaged_configs_are_refused_by_name(change, words, tmp_path):
    path = changed(change, tmp_path)
    with pytest.raises(ValueError, match=rf"config\.json: damaged \(.*{words}.*copy it anew"):
        AdapterConfig.load(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_a_value_of_any_kind_is_taken_or_refused(value):
    for name in FIELDS:
        with suppress(ValueError):
            assert getattr(AdapterConfig(**{name: value}), name) is value


def test_every_field_is_documented():
    body = ast.parse(inspect.getsource(AdapterConfig)).body[0].body
    for this, following in pairwise(body):
        if isinstance(this, ast.AnnAssign):
            assert isinstance(following, ast.Expr), ast.unparse(this)


@given(st.integers(1, 200))
def test_by_default_four_blocks_are_spread_over_the_last_third(count):
    layers = place_blocks(count, None, None, None)
    assert layers == sorted(set(layers))
    assert layers[-1] == count - 1
    assert 1 <= len(layers) <= 4
    assert layers[0] >= count - max(1, round(count / 3))
    if count >= 12:
        assert len(layers) == 4
        steps = [b - a for a, b in pairwise(layers)]
        assert max(steps) - min(steps) <= 1


@given(st.integers(1, 100), st.integers(1, 120), st.data())
def test_every_and_start_count_layers(count, every, data):
    start = data.draw(st.integers(0, count - 1))
    layers = place_blocks(count, every, start, None)
    assert layers == [layer for layer in range(count) if layer >= start and (layer - start) % every == 0]
    assert place_blocks(count, every, None, None) == place_blocks(count, every, 0, None)
    assert place_blocks(count, None, start, None) == place_blocks(count, 4, start, None)


@given(st.lists(st.integers(0, 29), min_size=1))
def test_a_list_is_taken_in_order_and_once(layers):
    assert place_blocks(30, None, None, layers) == sorted(set(layers))


@pytest.mark.parametrize(
    ("every", "start", "layers"),
    [
        (1.5, None, None),
        (4, 0.0, None),
        ("4", None, None),
        (None, None, "12"),
        (0, None, None),
        (-1, 0, None),
        (4, 6, None),
        (4, -1, None),
        (None, None, []),
        (None, None, [6]),
        (1, 1, [-1]),
    ],
)
def test_layers_that_are_not_there_are_refused(every, start, layers):
    with pytest.raises(ValueError, match="0 to 5"):
        place_blocks(6, every, start, layers)


@pytest.mark.parametrize(
    ("heads", "own", "said", "expected"),
    [
        (8, 2, {}, 2),  # the decoder's own
        (9, 3, {}, 3),
        (8, 8, {}, 2),  # as many of both: one for every four
        (32, None, {}, 8),
        (6, 6, {}, 2),
        (12, 12, {}, 3),
        (10, 10, {}, 5),
        (9, 9, {}, 3),
        (7, 7, {}, 7),
        (3, 3, {}, 1),
        (8, 8, {"heads": 16}, 4),
        (8, 8, {"kv_heads": 8}, 8),
        (8, 2, {"kv_heads": 4}, 4),
    ],
)
def test_key_heads_are_the_decoders_own_or_a_quarter_of_its_heads(heads, own, said, expected):
    text = LlamaConfig(hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=own)
    assert fit_config(text, 4, **said).kv_heads == expected
