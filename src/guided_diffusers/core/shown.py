"""Values in the words of messages: one short line each."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

_SHOWN = 80


def shown(value: Any) -> str:
    """A value as messages show it: a tensor by shape and dtype, anything else as written, in a short line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, bytes) or not (value is None or isinstance(value, _WRITTEN)):
        return a_kind_of(value)
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        line = f"a {type(value).__name__} that is too large"
    if len(line) <= _SHOWN:
        return line
    # a path is known by its end
    return (
        f"{line[: _SHOWN // 2]}...{line[-_SHOWN // 2 :]}" if isinstance(value, str) else f"{line[:_SHOWN]}..."
    )


_WRITTEN = (str, int, float, complex, list, tuple, dict)


def a_kind_of(value: Any) -> str:
    """The type of a value with its article: "an int", "a str"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def one_line(error: object) -> str:
    """What an error says, or another text, in one line; of one that says nothing the name of its type."""
    named = type(error).__name__ if isinstance(error, BaseException) else ""
    return " ".join(str(error).split()) or named


def as_number(value: Any) -> float | None:
    """A real number, or a tensor or array that holds one, as a float; None for anything else."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex() and value.dtype != torch.bool:
        return float(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (OverflowError, ValueError):
        return None
