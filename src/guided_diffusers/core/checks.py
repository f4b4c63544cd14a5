"""Checks of arguments, of one wording: the argument, what was given, what is allowed.

    scale is nan; allowed: a finite number

Each gives its value back as the type that it stands for, so that what follows never meets another. A value
of the wrong type and a value out of range are both a ValueError (what cannot be called is a TypeError); what
is given is shortened in the message, which is one line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

MAX_COUNT = 65_536
"""The most images, steps or the like that one call takes: beyond it is a typing mistake, or an attack."""
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
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


_WRITTEN = (str, int, float, complex, list, tuple, dict)


def a_kind_of(value: Any) -> str:
    """The type of a value with its article: "an int", "a str"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def one_line(error: object) -> str:
    """What an error says, or another text, in one line; of one that says nothing the name of its type."""
    named = type(error).__name__ if isinstance(error, BaseException) else ""
    return " ".join(str(error).split()) or named


def check_that(fits: Any, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError where a value does not fit, for a rule that no other check here knows.

    Args:
        fits: Whether it does.
        name: The argument's name.
        value: What was given.
        allowed: What is allowed, in words.
    """
    if not fits:
        raise ValueError(f"{name} is {shown(value)}; allowed: {allowed}")


def check_integers(name: str, value: Any, count: int, below: int) -> Tensor:
    """A tensor `(count,)` of integers from 0 to less than `below`, such as labels."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    allowed = f"({count},) integers from 0 to {below - 1}"
    check_that(whole and value.dtype != torch.bool and value.shape == (count,), name, value, allowed)
    check_that(all(0 <= number < below for number in value.tolist()), name, value.tolist(), allowed)
    return value


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """A string that is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {shown(value)}; allowed: {', '.join(map(repr, allowed))}")
    return value


def check_int(name: str, value: Any, low: int | None = None, high: int | None = MAX_COUNT) -> int:
    """An integer of any type but bool, from `low` to `high`; None is no limit."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and (low is None or value >= low) and (high is None or value <= high):
        return int(value)
    limits = _range(low, high if whole and high is not None and value > high else None)
    raise ValueError(f"{name} is {shown(value)}; allowed: an integer{limits}")


def check_number(
    name: str, value: Any, low: float | None = None, high: float | None = None, *, above: bool = False
) -> float:
    """A finite number of any type but bool, from `low` to `high`; `above` excludes `low`."""
    number = as_number(value)
    fits = number is not None and math.isfinite(number)
    fits = fits and (low is None or number > low or (number == low and not above))
    if not fits or (high is not None and number > high):
        limits = f" above {low:g}" if above and high is None else _range(low, high)
        raise ValueError(f"{name} is {shown(value)}; allowed: a finite number{limits}")
    return number


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


def check_bool(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; allowed: True or False")
    return value


def check_tensor(
    name: str, value: Any, shape: Sequence[int | str] | None = None, *, floating: bool = True
) -> Tensor:
    """A tensor, of a shape and with a dtype that is floating.

    Args:
        name: The argument's name.
        value: What was given.
        shape: A number where a side must have it, a name where any will do, "..." at the end for more sides;
            None for any shape.
        floating: Whether it must hold floating-point numbers; otherwise any dtype does.
    """
    expected = "" if shape is None else f" of shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    right = isinstance(value, Tensor) and (value.is_floating_point() or not floating)
    if not right or (shape is not None and not _fits(value.shape, shape)):
        kind = "floating-point tensor" if floating else "tensor"
        raise ValueError(f"{name} is {shown(value)}; allowed: a {kind}{expected}")
    return value


def check_finite(name: str, value: Tensor, most: float = math.inf) -> Tensor:
    """A tensor whose values are finite, and none beyond `most`."""
    if not (torch.isfinite(value).all() and (math.isinf(most) or value.abs().le(most).all())):
        limit = "" if math.isinf(most) else f" up to {most:g}"
        raise ValueError(
            f"{name} holds values that are NaN, infinite or too large; allowed: finite ones{limit}"
        )
    return value


def check_same_shape(name: str, value: Any, other: str, reference: Tensor) -> Tensor:
    """A floating-point tensor of the shape of another argument."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != reference.shape:
        raise ValueError(
            f"{name} is {shown(value)}; allowed: a floating-point tensor of the shape of {other}, "
            f"{tuple(reference.shape)}"
        )
    return value


def check_device(name: str, value: Any) -> torch.device | None:
    """A device, or the name of one; None passes."""
    try:
        return None if value is None else torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name} is {shown(value)}; allowed: a device, such as 'cpu' or 'cuda:0'") from None


def check_callable(name: str, value: Any, what: str = "a function") -> Any:
    """Anything that can be called."""
    if not callable(value):
        raise TypeError(f"{name} is {shown(value)}; allowed: {what}")
    return value


def check_numbers(
    name: str, values: Any, low: float | None = None, high: float | None = None, *, falling: bool = False
) -> list[float]:
    """At least one finite number, of a list, a tuple, or a tensor or array of one dimension.

    Args:
        name: The argument's name.
        values: What was given.
        low: The least that is allowed; None is no limit.
        high: The greatest.
        falling: Whether each must be below the one before.
    """
    listed = values.tolist() if hasattr(values, "tolist") and getattr(values, "ndim", 0) == 1 else values
    if not isinstance(listed, list | tuple | range) or not 0 < len(listed) <= MAX_COUNT:
        raise ValueError(f"{name} is {shown(values)}; allowed: a list of at least one number")
    numbers = [check_number(name, value, low, high) for value in listed]
    if falling and any(after >= before for before, after in zip(numbers, numbers[1:], strict=False)):
        raise ValueError(f"{name} is {shown(values)}; allowed: descending numbers")
    return numbers


def _fits(given: Sequence[int], wanted: Sequence[int | str]) -> bool:
    if wanted and wanted[-1] == "...":
        wanted = wanted[:-1]
        given = given[: len(wanted)]
    pairs = zip(given, wanted, strict=False)
    return len(given) == len(wanted) and all(isinstance(want, str) or side == want for side, want in pairs)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f" of at most {high:g}"
    return f" of at least {low:,}" if high is None else f" from {low:,} to {high:,}"
