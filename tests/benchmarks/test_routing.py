"""Benchmarks' experts are drawn, alike for all who take part."""

import pytest
import torch
from contenders import CELLS, Work, ours, text
from routing import Lots


@pytest.fixture
def taken(monkeypatch):
    """How many experts each call of a router took."""
    counts, draw = [], Lots.__call__

    def counted(self, router, args, made):
        drawn = draw(self, router, args, made)
        assert torch.equal(drawn[1], made[1]) and len(set(drawn[2][0].tolist())) == 2
        counts.append(len(drawn[2].unique()))
        return drawn

    monkeypatch.setattr(Lots, "__call__", counted)
    return counts


def test_with_images_as_many_experts_are_read_as_without(taken):
    work, found = Work("mixtral", torch.float32, rows=8, tokens=16, tiles=1, new=6), []
    assert work.media.shape[2] == CELLS
    for make in (text, ours):
        taken.clear()
        make(work).speak()
        found.append(list(taken))
    assert found[0] == found[1] and len(found[0]) == 6 * 8
    assert 10 < sum(found[0][8:]) / len(found[0][8:]) < 11.5  # 10.5 of 16 are expected
