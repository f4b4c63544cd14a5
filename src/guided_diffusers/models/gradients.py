"""A factor on the gradient alone: how a backward through float16 keeps small gradients.

float16 has no numbers between 0 and 6e-8 and few digits below 6e-5. The gradient of log p with respect to one
pixel of a large image is smaller than that, so the backward runs on a multiple of it: the factor goes in
where the gradient enters the float16 network and is divided out where it leaves it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself, whose gradient is multiplied by `factor` on its way back."""
    return _ScaleGradient.apply(tensor, factor)
