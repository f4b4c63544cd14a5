"""Work that several processes share: losses of a whole batch, drawings, and the end of one of them.

The engine takes the mean over processes of the gradients. Of a loss that is a mean over samples that is the
gradient of the whole batch, whatever part each process has. A loss in which samples meet (a contrastive one)
is computed by every process for the whole batch: each has the others' rows as constants, and its own rows
with their graph, so the gradients of the parts add up, where the engine takes their mean: hence the factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from guided_diffusers.core.checks import one_line
from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.models.gradients import scale_gradient

Result = TypeVar("Result")
_LOST = re.compile(
    "connection (closed|reset|refused)|timed? ?out|broken pipe|socket|remote process|NCCL|gloo", re.IGNORECASE
)


class ProcessLostError(ConnectionError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def lost_process(several: bool, kept: Callable[[], str]) -> Iterator[None]:
    """Turn the errors of a group one of whose processes is gone into one sentence.

    Args:
        several: whether there is such a group.
        kept: says what is still whole and what to do.

    Raises:
        ProcessLostError: a process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not several or not (isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))):
            raise
        raise ProcessLostError(
            f"another process of this run has ended or does not answer ({one_line(error)[:200]}); {kept()}"
        ) from error


def by_shares(count: int, make: Callable[[list[int]], list[Result]]) -> list[Result]:
    """What each of `count` things becomes, made by all processes, each some of them.

    Args:
        count: of the things, which have numbers from 0 on.
        make: numbers, of which there may be none -> a result for each.

    Returns:
        The results in the order of the numbers, on every process.

    Raises:
        NonFiniteError: one of them is not finite; on every process, none of which then waits for another.
    """
    state = PartialState()
    mine, made, failed = list(range(state.process_index, count, state.num_processes)), [], None
    try:
        made = make(mine) if mine else []
    except NonFiniteError as error:
        failed = error
    shares = gather_object([(mine, made, failed)])
    for _, _, error in shares:
        if error is not None:
            raise error
    pairs = [pair for numbers, results, _ in shares for pair in zip(numbers, results, strict=True)]
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]


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
