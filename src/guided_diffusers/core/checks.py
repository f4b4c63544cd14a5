"""Checks of arguments, of one wording: the argument, what was given, what is allowed.

    scale is nan; allowed: a finite number

Each gives its value back as the type that it stands for, so that what follows never meets another. A value
of the wrong type and a value out of range are both a ValueError (what cannot be called is a TypeError); what
is given is shortened in the message, which is one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from guided_diffusers.core.declared import Range, read
from guided_diffusers.core.shown import a_kind_of, as_number, one_line, shown  # noqa: F401 - all of one place

Shape = Sequence[int | str]
"""Sides as numbers, or names where any will do."""
MAX_COUNT = 65_536
"""The most images, steps or the like that one call takes: beyond it is a typing mistake, or an attack."""


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


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """A string that is one of `allowed`."""
    return read(name, value, Literal[tuple(allowed)])


def check_int(name: str, value: Any, low: int | None = None, high: int | None = MAX_COUNT) -> int:
    """An integer of any type but bool, from `low` to `high`; None is no limit."""
    beyond = high is not None and isinstance(value, Integral) and int(value) > high
    limits = Range(-math.inf if low is None else low, high if beyond and high is not None else math.inf)
    return read(name, value, Annotated[int, limits])


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """A finite number of any type but bool, from `low` to `high`; `above` excludes `low`."""
    return read(name, value, Annotated[float, Range(low, high, "(]" if above else "[]")])


def check_tensor(name: str, value: Any, shape: Shape | None = None, *, floating: bool = True) -> Tensor:
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
    right = right and (shape is None or _fits(value.shape, shape))
    check_that(right, name, value, f"a {'floating-point ' * floating}tensor{expected}")
    return value


def check_finite(name: str, value: Tensor, most: float = math.inf) -> Tensor:
    """A tensor whose values are finite, and none beyond `most`."""
    if not (torch.isfinite(value).all() and (math.isinf(most) or value.abs().le(most).all())):
        to = "" if math.isinf(most) else f" up to {most:g}"
        raise ValueError(f"{name} holds values that are NaN, infinite or too large; allowed: finite ones{to}")
    return value


def check_same_shape(name: str, value: Any, other: str, reference: Tensor) -> Tensor:
    """A floating-point tensor of the shape of another argument."""
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.shape == reference.shape):
        allowed = f"a floating-point tensor of the shape of {other}, {tuple(reference.shape)}"
        raise ValueError(f"{name} is {shown(value)}; allowed: {allowed}")
    return value


def check_callable(name: str, value: Any, what: str = "a function") -> Any:
    """Anything that can be called."""
    return read(name, value, Annotated[Callable[..., Any], what])


def _fits(given: Sequence[int], wanted: Sequence[int | str]) -> bool:
    if wanted and wanted[-1] == "...":
        wanted = wanted[:-1]
        given = given[: len(wanted)]
    pairs = zip(given, wanted, strict=False)
    return len(given) == len(wanted) and all(isinstance(want, str) or side == want for side, want in pairs)
