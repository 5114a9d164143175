"""RMS norm on a CPU, of which backward is kept no more than what came in.

torch's own keeps the normed values, too, for the gradient of the weight: of many images' keys and embeddings that is a
third more memory. Here they are made again from what came in. On CUDA torch has a kernel that does the same. There is
no second derivative, nor torch.func's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

EPS = 1e-6  # of all RMS norms


def rms(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., width] over its root mean square, times weight [width] of its dtype: the bits of torch's `rms_norm`."""
    plain = type(weight) in (Tensor, nn.Parameter) and x.dtype == weight.dtype  # not so where processes share it
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not (plain and torch.is_grad_enabled()):
        return rms_norm(x, weight.shape, weight, EPS)
    result: Tensor = RMS.apply(x, weight)
    return result


class RMS(torch.autograd.Function):
    """The same, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return rms_norm(x, weight.shape, weight, EPS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        width = x.shape[-1]
        with torch.autocast("cpu", enabled=False):  # backward may be called within one, which would sum in 16 bits
            squares = torch.linalg.vecdot(x, x)[..., None]
            over = squares.div_(width).add_(EPS).rsqrt_()  # [..., 1]
            unit = x * over
            its = grad * unit  # [..., width]
            to_weight = its.reshape(-1, width).sum(0) if ctx.needs_input_grad[1] else None
            if not ctx.needs_input_grad[0]:
                return None, to_weight
            along = (its @ weight)[..., None].div_(width)  # how much of the gradient only stretches x
            to_x = torch.mul(grad, weight, out=its).sub_(unit.mul_(along)).mul_(over)
            return to_x, to_weight
