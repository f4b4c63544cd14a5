"""The gradient of a function of images, one value a sample: what steers by a classifier or a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown


def gradient_of(
    name: str, function: Callable[[Tensor], Tensor], at: Tensor, through: Tensor | None = None
) -> Tensor:
    """The gradient with respect to `at` of each sample's own value.

    Args:
        name: What errors call the function.
        function: `(batch, ...) -> (batch,)`, no sample's value depending on another sample.
        at: Where, `(batch, ...)`.
        through: What was computed of `at`, with its graph, and is what `function` takes; None is `at` itself.

    Returns:
        `(batch, ...)`, of at's shape, without a graph.

    Raises:
        ValueError: The function does not give one value a sample, or values that do not depend on what it
            was given.
    """
    with torch.enable_grad():
        at = at.detach().requires_grad_() if through is None else at
        value = function(at if through is None else through)
        if not isinstance(value, Tensor) or value.shape != at.shape[:1]:
            shape = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {shown(value)}"
            raise ValueError(f"{name} {shape} for a sample of {tuple(at.shape)}; allowed: one value a sample")
        # Two terms through the predicted x_0 share its graph: the first must not free it.
        gradient = None
        if value.requires_grad:
            keep = through is not None
            gradient = torch.autograd.grad(value.sum(), at, retain_graph=keep, allow_unused=True)[0]
    if gradient is None:
        raise ValueError(f"{name} has no gradient: leave out no_grad, detach and rounding in it")
    return gradient
