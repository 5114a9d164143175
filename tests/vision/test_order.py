"""Reading order: each line once, columns one after the other, tables row by row, however the page is turned."""

import math
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vision.order import reading_rows

sizes = st.floats(1, 400)
boxes = st.lists(st.tuples(st.floats(-50, 2000), st.floats(-50, 2000), sizes, sizes), max_size=30)
ANGLES = [0, 90, 180, 270, 4, -6, 93, 176]


def quads_of(boxes):
    """Boxes (left, top, width, height) as quads [L, 4, 2]."""
    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    return np.array(corners, dtype=np.float64).reshape(-1, 4, 2)


def turn(quads, degrees):
    """The same page, turned clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return quads @ np.array([[cos, sin], [-sin, cos]])


def read(boxes, degrees=0, seed=0):
    """Rows of the boxes' numbers, which do not depend on the order that they are given in."""
    order = list(range(len(boxes)))
    random.Random(seed).shuffle(order)
    rows = reading_rows(turn(quads_of(boxes), degrees)[order])
    return [[order[place] for place in row] for row in rows]


@given(boxes=boxes, degrees=st.floats(0, 360))
def test_every_line_is_read_once(boxes, degrees):
    rows = reading_rows(turn(quads_of(boxes), degrees))
    assert all(rows) and sorted(number for row in rows for number in row) == list(range(len(boxes)))


@example(boxes=[(0, 0, 1, 1), (0, 0, 1, 5), (0, 0, 3, 1)], x=0, y=-2, scale=0.5)
@given(boxes=boxes, x=st.integers(-500, 500), y=st.integers(-500, 500), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_where_the_page_lies_and_how_large_it_is_does_not_matter(boxes, x, y, scale):
    boxes = [tuple(map(round, box)) for box in boxes]
    moved = [((left + x) * scale, (top + y) * scale, w * scale, h * scale) for left, top, w, h in boxes]
    assert read(moved) == read(boxes)


@st.composite
def prose(draw):
    """Pages of columns of prose, under a title across them: boxes in reading order."""
    height, gutter = draw(st.integers(8, 60)), draw(st.floats(1, 4))
    step, length = height * draw(st.floats(1.1, 1.8)), height * draw(st.integers(9, 30))
    boxes = []
    count = draw(st.integers(1, 4))
    if draw(st.booleans()):
        whole = count * length + (count - 1) * gutter * height
        boxes.append((0.1 * whole, -2.5 * height, 0.8 * whole, 1.3 * height))
    for column in range(count):
        start = column * (length + gutter * height)
        down = draw(st.floats(0, 1)) * step
        lines = draw(st.integers(3, 12))
        boxes += [
            (start, down + line * step, length * (0.5 if line == lines - 1 else 1), height) for line in range(lines)
        ]
    return boxes


@given(boxes=prose(), degrees=st.sampled_from(ANGLES), seed=st.integers(0, 9))
def test_columns_of_prose_are_read_one_after_the_other(boxes, degrees, seed):
    assert [number for row in read(boxes, degrees, seed) for number in row] == list(range(len(boxes)))


@given(boxes=prose(), pieces=st.integers(2, 5))
def test_words_are_read_as_the_lines_they_are_of(boxes, pieces):
    words = [
        (left + number * width / pieces, top, width / pieces - 0.3 * height, height)
        for left, top, width, height in boxes
        for number in range(pieces)
    ]
    assert [number for row in read(words) for number in row] == list(range(len(words)))


@st.composite
def tables(draw):
    """Tables: numbers of boxes by rows, and the boxes."""
    height = draw(st.integers(8, 60))
    columns = draw(st.integers(2, 5))
    # all but the first column are too narrow for prose, even where a cell is low
    widths = [height * draw(st.floats(1, 12))] + [height * draw(st.floats(1, 4.7)) for _ in range(columns - 1)]
    step = height * draw(st.floats(1.1, 3))
    starts = [sum(widths[:column]) + 3 * height * column for column in range(columns)]
    rows, boxes = [], []
    for row in range(draw(st.integers(1, 10))):
        # a cell of capitals or digits is lower than one with descenders
        cells = [
            (start, row * step, width, height * draw(st.floats(0.8, 1)))
            for start, width in zip(starts, widths, strict=True)
        ]
        rows.append(list(range(len(boxes), len(boxes) + columns)))
        boxes += cells
    return rows, boxes


@given(table=tables(), degrees=st.sampled_from(ANGLES), seed=st.integers(0, 9))
def test_tables_are_read_row_by_row(table, degrees, seed):
    rows, boxes = table
    assert read(boxes, degrees, seed) == rows


def test_messages_by_turns_are_read_from_the_top():
    """Left and right, as chats are shown: none stands beside another, so they are no columns."""
    boxes = [(20 if number % 2 else 320, 60 * number, 280, 30) for number in range(8)]
    assert read(boxes) == [[number] for number in range(8)]


def test_a_table_under_prose_in_columns():
    columns = [(left, 24 * line, 300, 20) for left in (0, 340) for line in range(8)]
    table = [(left, 300 + 40 * row, 60, 20) for row in range(3) for left in (100, 280, 500)]
    assert [number for row in read(columns + table) for number in row] == list(range(len(columns) + len(table)))


def test_lines_beside_columns_that_run_otherwise_are_read_too():
    """A note that runs upwards along the edge: one of many, so it does not turn the page."""
    boxes = [(60, 30 * line, 400, 20) for line in range(6)]
    quads = np.concatenate([quads_of(boxes), [[(10, 170), (10, 20), (30, 20), (30, 170)]]])
    rows = [row for row in reading_rows(quads) if row != [6]]
    assert [number for row in rows for number in row if number != 6] == list(range(6))


@pytest.mark.parametrize("count", [300, 1000])
def test_large_pages_are_read_at_once(count):
    """A detector's most: rows of three cells whose gutters run down the whole page."""
    boxes = [
        (200 * column, 20 * row, 150 if column == 0 else 50, 15) for row in range(count // 3) for column in range(3)
    ]
    assert read(boxes) == [[3 * row, 3 * row + 1, 3 * row + 2] for row in range(count // 3)]
