"""The outputs of networks of diffusers: tensors, tuples, objects or lists, with one prediction a sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown


def answer_of(output: Any) -> Any:
    """The prediction in a network's output: a tensor, or a list of one a sample."""
    return output if isinstance(output, Tensor | list) else output[0]


def joined(first: Any, second: Any) -> Any:
    """One output for two halves of a batch, in the form in which the network gives it."""
    one, other = answer_of(first), answer_of(second)
    both = one + other if isinstance(one, list) else torch.cat([one, other])
    if isinstance(first, Tensor | list):
        return both
    return (both, *first[1:]) if isinstance(first, tuple) else replace(first, sample=both)


def read(answer: Any, sample: Tensor, negated: bool = False) -> tuple[Tensor, Tensor | None]:
    """A network's prediction as its scheduler reads it, and the channels of a learned variance.

    Args:
        answer: A tensor, or a list of one a sample; with an axis more of size 1, with twice the channels, or
            with more tokens than the sample, those of reference images.
        sample: x_t, `(batch, ...)`.
        negated: The network's output is the negative of what its scheduler reads.

    Returns:
        The prediction, of sample's shape, and the other half of the channels; None where there is none.

    Raises:
        ValueError: An answer of another shape.
    """
    output = torch.stack(answer) if isinstance(answer, list) else answer
    if output.ndim == sample.ndim + 1 and output.shape[2] == 1:
        output = output.squeeze(2)
    extra, count = None, sample.shape[1]
    if output.ndim == sample.ndim and output.shape[1] > count:
        if sample.ndim == 3:
            output = output[:, :count]
        elif output.shape[1] == 2 * count:
            output, extra = output.split(count, dim=1)
    if output.shape != sample.shape:
        raise ValueError(
            f"the network answers {shown(answer)} for a sample of {tuple(sample.shape)} that the scheduler "
            "steps; guide works where they have one shape, or the network twice the channels"
        )
    return (-output if negated else output), extra
