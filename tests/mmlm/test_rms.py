"""RMS norm has torch's bits and gradients, and keeps less for them."""

import pytest
import torch
from torch.nn.functional import rms_norm

from mmlm.rms import EPS, rms


def drawn(shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape[-1], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("shape", [(7, 16), (3, 5, 2, 8), (1, 64)])
def test_bits_are_torchs_and_gradients_too(shape):
    x, weight = drawn(shape)
    x = x.detach().mT.contiguous().mT.requires_grad_()  # in another order, as keys come
    grad = torch.randn(shape)
    ours, torchs = rms(x, weight), rms_norm(x, weight.shape, weight, EPS)
    assert torch.equal(ours, torchs)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (ours, torchs)), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_differences():
    x, weight = drawn((3, 5), torch.float64)
    assert torch.autograd.gradcheck(rms, (x, weight))
    assert torch.autograd.gradcheck(rms, (x.detach(), weight)) and torch.autograd.gradcheck(rms, (x, weight.detach()))


def test_backward_is_kept_what_came_in_and_no_more():
    x, weight = drawn((50, 16))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda its: kept.append(its) or its, lambda its: its):
        rms(x, weight)
    assert {its.data_ptr() for its in kept} == {x.data_ptr(), weight.data_ptr()}


def test_gradients_are_as_fine_where_backward_is_called_within_autocast():
    x, weight = drawn((50, 64))
    made = rms(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(made, (x, weight), made.detach(), retain_graph=True)
    wanted = torch.autograd.grad(made, (x, weight), made.detach())
    assert all(map(torch.equal, found, wanted))
