"""Losses that are of a whole batch, whose samples several processes share.

The engine takes the mean over processes of the gradients. Of a loss that is a mean over samples that is the
gradient of the whole batch, whatever part each process has. A loss in which samples meet (a contrastive one)
is computed by every process for the whole batch: each has the others' rows as constants, and its own rows
with their graph, so the gradients of the parts add up, where the engine takes their mean: hence the factor.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor

from guided_diffusers.models.gradients import scale_gradient


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes in their order; gradients flow into this process's own.

    Args:
        rows: (batch, ...), as many on every process.

    Returns:
        (processes x batch, ...). The gradient of `rows` is multiplied by the number of processes, so that its
        mean over them is the gradient of the whole batch.
    """
    state = PartialState()
    if state.num_processes == 1:
        return rows
    parts = list(gather(rows.detach().contiguous()).split(len(rows)))
    if rows.requires_grad:
        parts[state.process_index] = scale_gradient(rows, state.num_processes)
    return torch.cat(parts)


def own_rows(count: int) -> slice:
    """Where the `count` rows of this process lie in what `gathered` gives."""
    first = PartialState().process_index * count
    return slice(first, first + count)
