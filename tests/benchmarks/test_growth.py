"""What grows faster than its floor is told; points are measured as they are counted."""

import pytest
import torch
from floors import Rates
from growth import CURVES, FIELD, HEAD, Curve, Point, alone, draw

SMALLEST = Point(rows=2, tokens=16, experts=2, blocks=1, layers=2)


def test_what_grows_faster_than_its_floor_is_told():
    slow = Curve("tiles", "seconds", [1, 2, 4], [2.0, 3.0, 5.0], [1.0, 1.5, 2.5])
    fast = Curve("tiles", "seconds", [1, 2, 4], [2.0, 6.0, 5.0], [1.0, 2.0, 2.5])
    assert slow.drawn == [2, 3, 5] and fast.faster == {1: 1, 2: 1.5, 4: 1}
    assert slow.row == ["tiles, seconds", "1 to 4", "2.50", "2.50", "2.0", "2.0", "no"]
    assert fast.row[-1] == "1.50 at 2" and len(fast.row) == len(HEAD)


def test_floors_grow_with_what_grows():
    can = Rates(product=1e12, read=1e10, copy=1e10)
    for name, points in CURVES.items():
        assert len({getattr(point, FIELD[name]) for point in points}) == len(points) > 3
        times, memory = zip(*(point.floors(can) for point in points), strict=True)
        assert list(times) == sorted(times) and list(memory) == sorted(memory)
        assert times[-1] > times[0]


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    draw([Curve("tiles", unit, [1, 2], [1.0, 2.0], [1.0, 3.0]) for unit in ("seconds", "MiB")], tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [1, 8])
def test_a_point_is_what_its_floor_counts(tiles):
    point = Point(rows=2, tokens=16, tiles=tiles, experts=2, blocks=1, layers=2)
    model = point.model()
    batch = point.batch(model)
    assert batch["input_ids"].shape == (2, 16) and batch["media_gather"].shape == (2, point.media)
    assert (batch["labels"] != -100).sum() == 2 * 4
    assert len(model.adapter.blocks) == 1 and batch["media_index"].eq(max(0, tiles // 4 - 1)).all()
    assert torch.equal(batch["media_gather"].flatten().sort()[0], torch.arange(2 * point.media)), "images of their own"


@pytest.mark.slow
def test_a_step_takes_no_less_than_its_floor():
    took, mib = alone(SMALLEST, 2)
    least, kept = SMALLEST.floors(Rates(product=1e15, read=1e13, copy=1e13))
    assert took > least > 0
    assert kept > 8 * 512 * 512 / 2**20
    assert mib > kept / 2, "some of it was free, and the process's own, when the model was built"
