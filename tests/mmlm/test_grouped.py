"""Products of groups are those of each group by itself, with bits that do not depend on how large it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.grouped import OTHERS, WAYS, alike, fits, product, way_of

KINDS = [(dtype, way) for dtype, ways in WAYS.items() for way in ways]


@st.composite
def groups(draw, way):
    """Sizes of groups that the way allows, some of none."""
    sizes = st.integers(0, (way.most - way.least) // way.step).map(lambda steps: way.least + steps * way.step)
    return draw(st.lists(st.just(0) | sizes, min_size=1, max_size=5).filter(any))


def drawn(sizes, inputs, outputs, dtype, outputs_last=False):
    """x [S, in], weights [E, in, out] in either layout, ends [E]."""
    random = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), inputs, generator=random).to(dtype)
    weight = torch.randn(len(sizes), inputs, outputs, generator=random).to(dtype)
    weight = weight if outputs_last else weight.transpose(1, 2).contiguous().transpose(1, 2)
    return x, weight, torch.tensor(sizes).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("outputs_last", [False, True])
@pytest.mark.parametrize(("dtype", "way"), KINDS)
@given(st.data())
@settings(max_examples=10)
def test_a_product_and_its_gradients_are_those_of_each_group(dtype, way, outputs_last, data):
    x, weight, ends = drawn(data.draw(groups(way)), 48, 80, dtype, outputs_last)
    splits = ends[:-1].tolist()

    def alone(x, weight):
        return torch.cat([rows @ its for rows, its in zip(x.tensor_split(splits), weight, strict=True)])

    found = []
    for multiply in (lambda x, weight: product(x, weight, ends, way.columns), alone):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = multiply(*inputs)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        close = {"atol": 1e-2, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 16, "rtol": 2e-2}
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize(("dtype", "way"), KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 2048), (1024, 512), (1536, 576), (96, 64), (200, 168)])
@given(st.data())
@settings(max_examples=5, deadline=None)
def test_the_bits_of_a_token_are_those_it_has_among_the_least(dtype, way, inputs, outputs, data):
    """Wherever it is in a group, wherever the group is."""
    most = alike(way, inputs, outputs, False, dtype, torch.get_num_threads(), torch.get_float32_matmul_precision())
    sizes = data.draw(groups(way._replace(most=most)))
    x, weight, ends = drawn(sizes, inputs, outputs, dtype)
    weight = weight[:1].expand(len(sizes), -1, -1)
    least = [x.roll(-first, 0)[: way.least] for first in range(0, len(x), way.least)]
    few = [product(rows, weight[:1], torch.tensor([way.least], dtype=torch.int32), way.columns) for rows in least]
    few = torch.cat(few)[: len(x)]
    assert torch.equal(product(x, weight, ends, way.columns), few)


@pytest.mark.parametrize("dtype", WAYS)
def test_as_many_tokens_as_there_are_on_average_have_room(dtype):
    """Or products are as large as they may be."""
    weight = torch.empty(4, 512, 512, dtype=dtype).transpose(1, 2)
    for average in (0.5, 3, 9, 20, 40, 100, 1000):
        way = way_of(average, [weight, weight])
        assert way.least <= way.most
        assert average <= way.most or way[:3] == WAYS[dtype][-1][:3]


def test_what_grouped_mm_does_not_take():
    assert fits(torch.empty(2, 8, 16, dtype=torch.bfloat16)) and fits(torch.empty(2, 4, 8))
    for weight in (torch.empty(2, 8, 12, dtype=torch.bfloat16), torch.empty(2, 8, 8, dtype=torch.float64)):
        assert not fits(weight)
        assert way_of(3.0, [weight]) == OTHERS[0]
