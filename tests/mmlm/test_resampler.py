"""The resampler, against the same said in loops, one view at a time and without padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlm.config import AdapterConfig
from mmlm.media import casting, collate
from mmlm.resampler import HEAD, Resampler, views_of
from vision.encoder import Features, prepare
from vision.pyramid import parse_tokens
from vision.tiles import plan_tiles

PYRAMID = parse_tokens("resampler")
OVERVIEW, TILE = PYRAMID.cells
WIDTH = 72  # no multiple of a head's


@pytest.fixture(scope="module", params=[1, 2])
def resampler(request):
    torch.manual_seed(0)
    config = AdapterConfig(tokens="resampler", media_dim=WIDTH, resampler_layers=request.param)
    made = Resampler(config, torch.randn(OVERVIEW + TILE, WIDTH) * 0.5)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    return made


@st.composite
def places(draw):
    """Of some images: overview and tiles, each with some of their cells, in any order, from two maps."""
    drawn = []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.sampled_from([(0, 0), (1, 1), (1, 2), (4, 2)]))
        cells = [(slot, 0, 0) for slot in draw(st.sets(st.integers(0, OVERVIEW - 1), min_size=1, max_size=4))]
        for row in range(rows):
            for column in range(columns):
                slots = draw(st.sets(st.integers(OVERVIEW, OVERVIEW + TILE - 1), min_size=1, max_size=4))
                cells += [(slot, row, column) for slot in slots]
        maps = torch.tensor(draw(st.permutations(cells))).split(
            [(some := draw(st.integers(0, len(cells)))), len(cells) - some]
        )
        drawn.append(tuple(part.view(-1, 3) for part in maps))
    return drawn


def flat(images):
    """Every cell of a batch as (image, slot, row, column), in a batch's order: maps first."""
    return [(i, *cell) for m in range(2) for i, its in enumerate(images) for cell in its[m].tolist()]


def by_hand(resampler, images, cells):
    """The embeddings [85 or 170, M] of each (image, tile), or (image, None) for its overview; cells [N, M]."""
    views = {}
    for n, (image, slot, row, column) in enumerate(flat(images)):
        views.setdefault((image, (row, column) if slot >= OVERVIEW else None), []).append(n)
    seen = {}
    for (image, tile), which in views.items():
        row, column = tile or (0, 0)
        latents = resampler.latents[85:] if tile else resampler.latents[:85]
        x = (latents + resampler.row[row] + resampler.column[column])[None]
        for layer in resampler.layers:
            x = layer(x, cells[None, which], torch.ones(1, len(which), dtype=torch.bool))
        seen[image, tile] = resampler.norm(x)[0]
    return seen


@given(images=places())
@settings(max_examples=30)
def test_each_view_is_what_it_is_alone_and_without_padding(resampler, images):
    counts, media = views_of(images, PYRAMID.cells)
    cells = torch.randn(len(flat(images)), WIDTH)
    with torch.no_grad():
        got = resampler(cells, media["media_reads"], media["media_views"])
        seen = by_hand(resampler, images, cells)
    tiles = [sorted(tile for image, tile in seen if image == i and tile) for i in range(len(images))]
    assert counts == [(85, 170 * len(its)) for its in tiles]
    order = [(i, None) for i in range(len(images))] + [(i, tile) for i, its in enumerate(tiles) for tile in its]
    torch.testing.assert_close(got, torch.cat([seen[view] for view in order]), atol=1e-4, rtol=1e-4)


@given(images=places(), data=st.data())
@settings(max_examples=20)
def test_a_cell_is_read_by_its_own_view_alone(resampler, images, data):
    """To the last bit; and there by every latent."""
    changed = data.draw(st.integers(0, len(flat(images)) - 1))
    _, media = views_of(images, PYRAMID.cells)
    cells = torch.randn(len(flat(images)), WIDTH)
    other = cells.clone()
    other[changed] += 1
    with torch.no_grad():
        one, two = (resampler(its, media["media_reads"], media["media_views"]) for its in (cells, other))
    overviews, tiles = media["media_views"]
    image, slot, row, column = flat(images)[changed]
    first = image * 85
    if slot >= OVERVIEW:
        before = sum(len(torch.cat(its)[torch.cat(its)[:, 0] >= OVERVIEW, 1:].unique(dim=0)) for its in images[:image])
        mine = next(n for n in range(before, len(tiles)) if tiles[n].tolist() == [row, column])
        first = len(overviews) * 85 + mine * 170
    same = (one == two).all(1)
    own = torch.zeros_like(same)
    own[first : first + (170 if slot >= OVERVIEW else 85)] = True
    assert torch.equal(same, ~own)


def test_tiles_of_the_same_cells_are_told_apart_by_their_place(resampler):
    cells, reads = torch.randn(3, WIDTH), torch.tensor([5, TILE + 5, 2 * TILE + 5])
    cells[1:] = cells[0]
    views = (torch.zeros(0, 2).long(), torch.tensor([[1, 0], [1, 0], [1, 1]]))
    with torch.no_grad():
        one, same, other = resampler(cells, reads, views).split(170)
    torch.testing.assert_close(one, same)
    assert (one - other).abs().max() > 0.1
    assert len(one.unique(dim=0)) == 170, "and each latent from the others"


def test_a_latent_reads_near_its_home_first():
    """Before training, of cells that are nothing but places."""
    torch.manual_seed(0)
    slot = torch.randn(OVERVIEW + TILE, 4 * HEAD)
    made = Resampler(AdapterConfig(tokens="resampler", media_dim=4 * HEAD), slot)
    layer, homes = made.layers[0], torch.arange(170) * 256 // 170
    q = layer.q_norm(layer.q(layer.norm(made.latents[85:])).unflatten(-1, (-1, HEAD)))
    k = layer.k_norm(layer.k(layer.cell_norm(slot[OVERVIEW : OVERVIEW + 256])).unflatten(-1, (-1, HEAD)))
    weights = (torch.einsum("lhd,chd->hlc", q, k) * HEAD**-0.5).softmax(-1)
    assert torch.equal(weights.mean(0).argmax(1), homes)


@pytest.mark.parametrize("detail", ["high", "low", "auto"])
@given(width=st.integers(1, 1300), height=st.integers(1, 1300))
@settings(max_examples=10)
def test_an_image_of_any_size_is_what_the_rule_says(detail, width, height, picture):
    """85 and 170, however much of its tiles is padding; and rows gather their own images' in order."""
    sizes = [(width, height), (height, width), (60, 40)]
    images = [prepare(picture(n, size), PYRAMID, detail) for n, size in enumerate(sizes)]
    worth = [plan_tiles(*size, detail).embeddings for size in sizes]
    rows = [[0, 2], [], [1, 0, 1]]
    batch = collate(images, rows, torch.zeros(3, 1).long(), PYRAMID)
    number = torch.arange(85 * 3 + 170 * len(batch["media_views"][1]))
    whose = torch.cat(
        [torch.arange(3).repeat_interleave(85), torch.arange(3).repeat_interleave(torch.tensor(worth) - 85)]
    )
    for row, gather, owner in zip(rows, batch["media_gather"], batch["media_owner"], strict=True):
        real = gather[owner >= 0]
        assert real.tolist() == [n for image in row for n in number[whose == image].tolist()]
    assert len(batch["media_reads"]) == len(batch["media_places"]) == len(batch["media_reads"].unique())


def test_features_of_several_maps_are_read_where_they_belong():
    """The cell of each value, told by a resampler that only sums up what it reads."""
    slots = [torch.tensor([[0, 0, 0], [OVERVIEW, 0, 1]]), torch.tensor([[3, 0, 0], [OVERVIEW + 7, 0, 0]])]
    images = [Features((torch.zeros(2, 1), torch.zeros(2, 1)), tuple(slots)) for _ in range(2)]
    batch = collate(images, [[0, 1]], torch.zeros(1, 1).long(), PYRAMID)
    tiles = 2 * OVERVIEW
    assert batch["media_views"][1].tolist() == [[0, 0], [0, 1]] * 2
    assert batch["media_reads"].tolist() == [
        *(0, tiles + TILE, OVERVIEW, tiles + 3 * TILE),
        *(3, tiles + 7, OVERVIEW + 3, tiles + 2 * TILE + 7),
    ]


def test_an_overview_alone_has_gradients_for_all_weights():
    """At low detail no tile is there; weights without a gradient would stall training on several devices."""
    made = Resampler(AdapterConfig(tokens="resampler", media_dim=16), torch.randn(OVERVIEW + TILE, 16))
    views = (torch.zeros(2, 2).long(), torch.zeros(0, 2).long())
    got = made(torch.randn(2, 16), torch.tensor([0, OVERVIEW]), views)
    assert got.shape == (2 * 85, 16)
    got.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())
    assert isinstance(made.layers, nn.ModuleList) and len(made.layers) == 2


def test_in_bf16_it_reads_as_in_fp32(resampler):
    """Nearly; with gradients, as a decoder in 16 bits has it trained."""
    _, media = views_of([(torch.tensor([[0, 0, 0], [9, 0, 0], [OVERVIEW + 3, 0, 0]]),)], PYRAMID.cells)
    cells = torch.randn(3, WIDTH)
    wanted = resampler(cells, media["media_reads"], media["media_views"])
    with casting(cells.device, torch.bfloat16):
        got = resampler(cells, media["media_reads"], media["media_views"])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=0.1, rtol=0.1)
    one, other = (torch.autograd.grad(out.square().sum(), resampler.layers[0].v.weight)[0] for out in (got, wanted))
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
