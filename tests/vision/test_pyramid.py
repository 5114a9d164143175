"""The grid pyramid: which square of which map every embedding is, and that nothing is counted twice."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision.pyramid import CELL, COLUMN, PICTURE, REAL, ROW, SLOT, TOKENS, Level, Pyramid, layout, parse_tokens
from vision.tiles import plan_tiles

DEFAULT = Pyramid()
WHOLE = torch.tensor([[512, 512]])
ONE_MAP = Pyramid(overview=(Level(2, -1), Level(9, -1)), tile=(Level(1, -1), Level(13, -1)))  # 4 + 81, 1 + 169

sides = st.integers(1, 5000) | st.sampled_from([1, 511, 512, 513, 768, 1024, 2048])
details = st.sampled_from(["high", "low"])


def extents_of(width, height, plan):
    """(width, height) of what is image in each picture of an image of that size."""
    whole = tuple(max(1, int(Fraction(side * 512, max(width, height)) + Fraction(1, 2))) for side in (width, height))
    if plan.pictures == 1:
        return (whole,)
    return (whole, *((right - left, bottom - top) for left, top, right, bottom in plan.boxes))


def by_hand(pyramid, plan, extents):
    """Every embedding as (map, picture, x0, y0, side, slot, row, column, real), its square in 512ths of the picture."""
    first = 1 if len(plan.boxes) > 1 else 0
    tiles = [(first + i, top // 512, left // 512) for i, (left, top, *_) in enumerate(plan.boxes)]
    rows = set()
    for shown, levels, slot in (([(0, 0, 0)], pyramid.overview, 0), (tiles, pyramid.tile, 85)):
        for level in levels:
            side = Fraction(512, level.grid)
            for y in range(level.grid):
                for x in range(level.grid):
                    for picture, row, column in shown:
                        width, height = extents[picture]
                        real = x * side < width and y * side < height
                        rows.add((level.source, picture, x * side, y * side, side, slot, row, column, int(real)))
                    slot += 1
    return rows


def squares(pyramid, source):
    """(x0, y0, side) of each cell that `pool` gives for one map, in its order."""
    return [
        (x * Fraction(512, level.grid), y * Fraction(512, level.grid), Fraction(512, level.grid))
        for level in pyramid.overview + pyramid.tile
        if level.source == source
        for y in range(level.grid)
        for x in range(level.grid)
    ]


@pytest.mark.parametrize("pyramid", [DEFAULT, ONE_MAP])
@given(width=sides, height=sides, detail=details)
def test_layout_is_what_a_hand_would_lay(pyramid, width, height, detail):
    plan = plan_tiles(width, height, detail)
    extents = extents_of(width, height, plan)
    laid = set()
    for source, table in zip(pyramid.sources, layout(pyramid, plan, extents), strict=True):
        cells = squares(pyramid, source)
        for row in table.tolist():
            place = (row[SLOT], row[ROW], row[COLUMN], row[REAL])
            laid.add((source, row[PICTURE], *cells[row[CELL]], *place))
    assert laid == by_hand(pyramid, plan, extents)


@given(width=sides, height=sides, detail=details)
def test_every_embedding_has_a_place_of_its_own(width, height, detail):
    plan = plan_tiles(width, height, detail)
    table = torch.cat(layout(DEFAULT, plan, extents_of(width, height, plan)))
    assert len(table) == plan.embeddings
    assert len(table[:, [SLOT, ROW, COLUMN]].unique(dim=0)) == plan.embeddings
    assert table[:, SLOT].min() >= 0 and table[:, SLOT].max() < 85 + 170
    assert table[:, PICTURE].unique().tolist() == list(range(plan.pictures))


@given(width=sides, height=sides, detail=details)
def test_every_picture_shows_something(width, height, detail):
    """The coarsest cell of a picture is never padding alone: no image is without embeddings."""
    plan = plan_tiles(width, height, detail)
    table = torch.cat(layout(DEFAULT, plan, extents_of(width, height, plan)))
    real = table[table[:, REAL] == 1]
    assert real[:, PICTURE].unique().tolist() == list(range(plan.pictures))


@given(grid=st.integers(1, 12), height=st.integers(1, 20), width=st.integers(1, 20))
def test_pool_averages_what_a_cell_touches(grid, height, width):
    """Cell i of n covers, of `size` rows, floor(i size / n) to ceil((i + 1) size / n)."""
    random = torch.Generator().manual_seed(grid)
    source = torch.randn(1, 3, height, width, generator=random)
    rest = (Level(1, -1),) * (85 - grid**2 if grid < 9 else 85)
    overview = (Level(grid, -1), *rest) if grid < 9 else rest
    tile = (Level(grid, -1), *(Level(1, -1),) * (170 - grid**2))
    (cells,) = Pyramid(overview, tile).pool([[source]], WHOLE)
    assert cells.shape == (1, 255, 3)
    for square in range(grid**2):
        y, x = divmod(square, grid)
        rows = slice(y * height // grid, -(-(y + 1) * height // grid))
        columns = slice(x * width // grid, -(-(x + 1) * width // grid))
        torch.testing.assert_close(cells[0, 85 + square], source[0, :, rows, columns].mean((1, 2)))


@given(grid=st.integers(1, 8), side=st.integers(1, 20), width=st.integers(1, 512), height=st.integers(1, 512))
def test_pool_averages_what_is_image_of_it(grid, side, width, height):
    """What maps say of padding alone is in no cell, and a cell of padding alone is 0."""
    source = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(grid))
    pyramid = Pyramid((Level(grid, -1), *(Level(1, -1),) * (85 - grid**2)))
    (cells,) = pyramid.pool([{-1: source, -2: source}], torch.tensor([[width, height]]))[:1]
    real = [min(side, -(-one * side // 512)) for one in (height, width)]
    for square in range(grid**2):
        y, x = divmod(square, grid)
        rows = slice(y * side // grid, min(real[0], -(-(y + 1) * side // grid)))
        columns = slice(x * side // grid, min(real[1], -(-(x + 1) * side // grid)))
        covered = source[0, :, rows, columns]
        shown = x * 512 < width * grid and y * 512 < height * grid
        assert covered.numel() or not shown
        wanted = covered.mean((1, 2)) if covered.numel() else torch.zeros(3)
        torch.testing.assert_close(cells[0, square], wanted, rtol=1e-4, atol=1e-5)


def test_pool_takes_each_level_from_its_own_map():
    maps = [torch.full((2, channels, size, size), float(size)) for channels, size in ((8, 128), (16, 32), (24, 16))]
    deep, shallow = DEFAULT.pool([maps], WHOLE.expand(2, 2))
    assert deep.shape == (2, 1 + 4 + 16 + 1 + 25, 24) and deep.unique().item() == 16
    assert shallow.shape == (2, 64 + 144, 16) and shallow.unique().item() == 32


def test_sources_are_named_by_backbone_the_deepest_first():
    levels = (Level(1, -3), Level(5, -1, 1), Level(12, -2))
    assert Pyramid(tile=levels).sources == ((0, -1), (0, -2), (0, -3), (1, -1))
    assert ONE_MAP.sources == ((0, -1),)


@pytest.mark.parametrize("name", TOKENS)
def test_each_published_guess_makes_85_and_170(name):
    pyramid, mixed = parse_tokens(name), parse_tokens(name, 2)
    for one, two in ((pyramid.overview, mixed.overview), (pyramid.tile, mixed.tile)):
        finest = max(range(len(one)), key=lambda n: one[n].grid)
        assert [level.backbone for level in two] == [int(n == finest) for n in range(len(two))]
        assert [(level.grid, level.map) for level in one] == [(level.grid, level.map) for level in two]
    if not pyramid.resampled:
        assert parse_tokens(TOKENS[name]) == pyramid


def test_the_default_is_the_pyramid():
    assert parse_tokens("pyramid") == DEFAULT


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("pyramide", "tokens='pyramide': one of pyramid, square, seven, triple, resampler"),
        ({"tiles": [[1, -1]]}, "tokens: has tiles; takes 'overview' and 'tile'"),
        ({"overview": [[1]], "tile": []}, r"tokens: the level \[1\] is not"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        parse_tokens(tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overview": (Level(9, -1),)}, r"tokens: overview: grids \[9\] have 81 cells; they must have 85"),
        ({"tile": (Level(13, -1), Level(2, -2))}, r"tokens: tile: grids \[13, 2\] have 173 cells; they must have 170"),
        ({"tile": ()}, r"tokens: tile: grids \[\] have 0 cells; they must have 170"),
    ],
)
def test_grids_that_do_not_add_up_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Pyramid(**fields)


@pytest.mark.parametrize(
    ("grid", "map_"), [(0, -1), (-1, -1), (1.0, -1), ("1", -1), (True, -1), (5, 0), (5, 9), (5, None)]
)
def test_levels_that_are_none_are_refused(grid, map_):
    with pytest.raises(ValueError, match=rf"tokens: Level\(grid={grid!r}, map={map_!r}, backbone=0\): a grid has"):
        Level(grid, map_)


def test_the_layouts_that_are_kept_are_a_few_megabytes():
    plan = plan_tiles(2048, 768)
    largest = layout(DEFAULT, plan, extents_of(2048, 768, plan))
    assert sum(table.nbytes for table in largest) * layout.cache_parameters()["maxsize"] < 2**23
