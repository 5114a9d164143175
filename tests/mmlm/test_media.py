"""What a batch sees where, against the same said in loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlm.adapter import Adapter
from mmlm.config import AdapterConfig
from mmlm.media import KEYS, View, collate
from vision.encoder import Features, Prepared
from vision.pyramid import Pyramid

CHANNELS = (3, 2)
PYRAMID = Pyramid()  # a cell is an embedding, whatever its place


def features(number, sizes):
    """Features whose every value says which image and embedding it is of."""
    values = tuple(
        (100 * number + 10 * m + torch.arange(size))[:, None].expand(-1, c).float()
        for m, (size, c) in enumerate(zip(sizes, CHANNELS, strict=True))
    )
    return Features(values, tuple(torch.randint(0, 5, (size, 3)) for size in sizes))


@st.composite
def batches(draw):
    """Images of different numbers of embeddings, and rows that show them in any order, any number of times, or none."""
    count = draw(st.integers(1, 4))
    images = [features(i, draw(st.tuples(st.integers(1, 4), st.integers(0, 3)))) for i in range(count)]
    rows = draw(st.lists(st.lists(st.integers(0, count - 1), max_size=3), min_size=1, max_size=4))
    length = draw(st.integers(1, 6))
    index = torch.tensor(
        [sorted(draw(st.lists(st.integers(-1, len(row) - 1), min_size=length, max_size=length))) for row in rows]
    )
    return images, rows, index


SEEN = batches().filter(lambda drawn: any(drawn[1]))  # that show an image


@given(batches())
def test_rows_are_given_their_own_images_in_order(drawn):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    if not any(rows):
        assert batch == {}
        return
    assert set(batch) <= set(KEYS)
    flat = torch.cat([values[:, 0] for values in batch["media_values"]])
    assert len(batch["media_places"]) == len(flat)
    for row, gather, owner in zip(rows, batch["media_gather"], batch["media_owner"], strict=True):
        real = owner >= 0
        expected = [torch.cat([v[:, 0] for v in images[i].values]) for i in row]
        assert torch.equal(flat[gather[real]], torch.cat(expected) if row else torch.zeros(0))
        assert owner[real].tolist() == [n for n, values in enumerate(expected) for _ in values]
        assert not gather[~real].any()


@given(SEEN)
def test_places_go_with_values(drawn):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    first = 0
    for m, values in enumerate(batch["media_values"]):
        places = batch["media_places"][first : first + len(values)]
        assert torch.equal(places, torch.cat([image.places[m] for image in images]))
        first += len(values)


def test_pictures_of_all_images_are_numbered_on():
    def prepared(pictures):
        cells = tuple(torch.tensor([[p, 7] for p in range(pictures)]) for _ in CHANNELS)
        places = tuple(torch.zeros(pictures, 3).long() for _ in CHANNELS)
        return Prepared(torch.zeros(pictures, 3, 2, 2), torch.arange(pictures)[:, None] + 1, cells, places)

    batch = collate([prepared(2), prepared(1), prepared(3)], [[0, 2], [1]], torch.zeros(2, 3).long(), PYRAMID)
    assert len(batch["pixel_values"]) == 6
    assert batch["pixel_extents"].flatten().tolist() == [1, 2, 1, 1, 2, 3]
    assert [cells[:, 0].tolist() for cells in batch["media_cells"]] == [[0, 1, 2, 3, 4, 5]] * 2


@given(
    SEEN,
    st.sampled_from(["latest", "all"]),
    st.integers(0, 8),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_tokens_see_what_the_rule_says(drawn, attend, past, length, copies):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view = a_view(batch, attend)
    view.move(past, length, copies * len(rows))
    showing = [row for row in range(len(rows)) if rows[row]]
    first = view.first
    assert first == next((t for t in range(length) if (index[:, min(past + t, index.shape[1] - 1)] >= 0).any()), length)

    def unfolded(told):
        return told.reshape(len(showing), copies, length - first, *told.shape[2:])

    sees, mask = (None if told is None or view.blind else unfolded(told) for told in (view.sees, view.mask))
    sees_any = False
    for row in range(len(rows)):
        for t in range(length):
            latest = int(index[row, min(past + t, index.shape[1] - 1)])
            sees_any |= latest >= 0
            for copy in range(copies if row in showing and t >= first else 0):
                at = showing.index(row), copy, t - first
                assert (sees is None or bool(sees[at])) == (latest >= 0)
                if latest < 0:
                    assert mask is None or mask[at].any(), "an empty row of a softmax is NaN"
                    continue
                for owner, masked in zip(
                    batch["media_owner"][row], [True] * 99 if mask is None else mask[at], strict=False
                ):
                    wanted = owner == latest if attend == "latest" else 0 <= owner <= latest
                    assert bool(masked) == bool(wanted)
    assert view.blind == (not sees_any)


@given(SEEN, st.integers(1, 3))
def test_looking_leaves_blind_tokens_alone_and_is_finite(drawn, copies):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view = a_view(batch, "latest")
    view.move(0, index.shape[1], copies * len(rows))
    hidden = torch.randn(copies * len(rows), index.shape[1], 8)
    out = view.look(0, hidden)
    blind = (index < 0).repeat_interleave(copies, 0)
    assert torch.isfinite(out).all()
    assert torch.equal(out[blind], hidden[blind])
    assert blind.all() or not torch.equal(out[~blind], hidden[~blind])


@given(SEEN, st.integers(1, 3), st.sampled_from(["latest", "all"]))
def test_rows_and_their_copies_see_what_each_sees_alone(drawn, copies, attend):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view, length = a_view(batch, attend), index.shape[1]
    hidden = torch.randn(copies * len(rows), length, 8)
    view.move(0, length, len(hidden))
    together = view.look(0, hidden)
    for number, row in enumerate(rows):
        for one in range(number * copies, (number + 1) * copies):
            alone = hidden[one : one + 1]
            if row:
                own = a_view(collate(images, [row], index[number : number + 1], PYRAMID), attend, view.adapter)
                own.move(0, length, 1)
                alone = own.look(0, alone)
            torch.testing.assert_close(together[one : one + 1], alone, atol=1e-3, rtol=1e-4)


@given(SEEN, st.integers(1, 3), st.booleans())
def test_each_of_several_residual_streams_looks(drawn, streams, flat):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view = a_view(batch, "latest")
    view.move(0, index.shape[1], len(rows))
    hidden = torch.randn(*index.shape, streams, 8)
    out = view.look(0, hidden.flatten(2) if flat else hidden).view(hidden.shape)
    for stream in range(streams):
        torch.testing.assert_close(out[:, :, stream], view.look(0, hidden[:, :, stream]), atol=1e-3, rtol=1e-4)
    assert torch.equal(out[index < 0], hidden[index < 0])


def test_hidden_states_in_another_order_are_refused():
    view = a_view(collate([features(0, (3, 2))], [[0], [0]], torch.zeros(2, 4).long(), PYRAMID), "latest")
    view.move(0, 4, 2)
    for sides in [(4, 2, 8), (2, 5, 8), (2, 12, 8)]:
        with pytest.raises(ValueError, match=r"2 rows of 4 tokens are .* a gated block takes \[rows, tokens, width\]"):
            view.look(0, torch.zeros(sides))


def test_media_of_other_rows_are_refused():
    view = a_view(collate([features(0, (3, 2))], [[0], [0]], torch.zeros(2, 4).long(), PYRAMID), "latest")
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"{rows} rows of text came with the media of 2"):
            view.move(0, 4, rows)


def test_where_the_cache_cannot_tell_the_tokens_are_counted():
    """And where it can it is believed: assisted decoding goes back."""
    index = torch.tensor([[-1, -1, 0, 0, 1, 1]])
    view = a_view(collate([features(0, (3, 2)), features(1, (1, 1))], [[0, 1]], index, PYRAMID), "latest")
    seen = []
    for past, length in [(0, 3), (None, 2), (None, 1), (2, 2), (None, 1), (0, 1), (None, 1)]:
        view.move(past, length, 1)
        seen.append(view.moved)
    assert seen == [3, 5, 6, 4, 5, 1, 2]
    other = view.at(index)
    other.move(None, 4, 1)
    assert (view.moved, other.moved) == (2, 4), "another text is counted from its start"


def test_keys_and_values_are_computed_once_and_not_copied():
    """Neither for beams nor for rows that show the same."""
    images, index = [features(0, (3, 2)), features(1, (1, 1))], torch.zeros(2, 4).long()
    view = a_view(collate(images, [[0], [1, 0]], index, PYRAMID), "latest")
    calls = []
    view.adapter.blocks[0].k.register_forward_hook(lambda *_: calls.append(0))
    for copies in (1, 3):
        view.move(0, 4, 2 * copies)
        view.look(0, torch.randn(2 * copies, 4, 8))
    k, v = view.keys_values(0)
    assert len(calls) == 1
    assert k.shape == v.shape == (2, 1, 7, 4)
    assert a_view(collate(images, [[0, 1]] * 2, index, PYRAMID), "latest").keys_values(0)[0].shape == (1, 1, 7, 4)


@given(SEEN)
def test_under_all_an_embedding_is_what_its_images_places_make_of_it(drawn):
    """And there are as many as there are images at places, however many rows show them there."""
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view = a_view(batch, "all")
    plain = view.adapter.media(batch["media_values"], batch)
    table = torch.cat([torch.zeros(1, plain.shape[1]), view.adapter.images])
    shown = [row for row in rows if row]
    for gather, owner, row in zip(view.gather, view.owner, shown, strict=False):  # one, if all show the same
        flat = collate(images, [row], index[:1], PYRAMID)["media_gather"][0]
        wanted = plain[batch["media_gather"][rows.index(row)][: len(flat)]] + table[owner[owner >= 0]]
        assert torch.equal(view.media[gather[owner >= 0]], wanted)
    pairs = {(image, place) for row in rows for place, image in enumerate(row)}
    assert len(view.media) == sum(sum(map(len, images[image].values)) for image, _ in pairs)


@given(batches().filter(lambda drawn: len(drawn[1][0]) > 1), st.data(), st.sampled_from(["latest", "all"]))
def test_images_joined_are_images_shown_at_once(drawn, data, attend):
    images, rows, index = drawn
    row, index = rows[0], index[:1]
    before = data.draw(st.integers(1, len(row) - 1))
    whole = a_view(collate(images, [row], index, PYRAMID), attend)
    old, new = (collate(images, [part], index, PYRAMID) for part in (row[:before], row[before:]))
    first = a_view(old, attend, whole.adapter)
    first.keys_values(0)
    joined = first.joined(a_view(new, attend, whole.adapter, before)).at(index)
    hidden = torch.randn(1, index.shape[1], 8)
    for view in (whole, joined):
        view.move(0, index.shape[1], 1)
    torch.testing.assert_close(joined.look(0, hidden), whole.look(0, hidden), atol=1e-3, rtol=1e-4)


@given(SEEN, st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3), st.integers(1, 2)), min_size=2, max_size=5))
def test_where_it_was_before_makes_no_difference(drawn, moves):
    images, rows, index = drawn
    batch = collate(images, rows, index, PYRAMID)
    view = a_view(batch, "latest")
    for past, length, copies in moves:
        fresh = a_view(batch, "latest")
        for one in (view, fresh):
            one.move(past, length, copies * len(rows))
        assert view.blind == fresh.blind
        for one, two in ((view.sees, fresh.sees), (view.mask, fresh.mask)):
            assert view.blind or (one is None and two is None) or torch.equal(one, two)
        view = view.at(index.flip(0)) if past == 0 else view
        if past == 0:
            index = index.flip(0)
            batch = batch | {"media_index": index}


def test_with_gradients_and_without_it_shows_the_same():
    batch = collate(
        [features(0, (3, 2)), features(1, (1, 1))], [[0], [1, 0]], torch.tensor([[-1, 0, 0], [0, 0, 1]]), PYRAMID
    )
    view = a_view(batch, "latest")
    view.move(0, 3, 2)
    hidden = torch.randn(2, 3, 8)
    plain = view.look(0, hidden)
    assert plain.requires_grad and not view.folded
    with torch.no_grad():
        without = view.look(0, hidden)
    torch.testing.assert_close(without, plain.detach())
    kept = view.folded[0]
    with torch.no_grad():
        view.look(0, hidden)
    assert view.folded[0] is kept


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_a_batch_without_images_has_no_media(rows):
    assert collate([], rows, torch.zeros(len(rows), 2).long(), PYRAMID) == {}


def a_view(batch, attend, adapter=None, before=0):
    config = AdapterConfig(
        layers=[0],
        hidden=8,
        heads=2,
        kv_heads=1,
        head_dim=4,
        media_dim=6,
        channels=list(CHANNELS),
        ff_factor=1.0,
        attend=attend,
    )
    if adapter is None:
        adapter = Adapter(config)
        with torch.no_grad():
            for module in adapter.blocks[0].modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.normal_()
            adapter.blocks[0].attention_gate.fill_(0.7)
            adapter.blocks[0].ff_gate.fill_(0.7)
    media = adapter.media(batch["media_values"], batch)
    return View(adapter, media.detach(), batch, attend, torch.float32, before=before)
