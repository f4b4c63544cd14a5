"""One property for everything that checks its input.

    Right arguments work, and give what is finite and of the documented shape. With one or two of them spoiled
    the call still works, as before, or raises ValueError or TypeError with one line that names a spoiled one.

Any other exception is a crash, and fails.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from properties.strategies import WRONG
from torch import Tensor

SETTINGS = {
    "derandomize": True,  # the same cases in every run
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],  # a failing case is shown as it is: to make it smaller takes minutes
    "suppress_health_check": list(HealthCheck),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A call whose input is checked.

    Attributes:
        call: What is called, by keyword.
        arguments: Values that go together, each argument's; or a strategy of such mappings.
        wrong: What may take the place of a right value.
        right: Fails where a result is not what the documentation says.
        called: Other names under which a message may speak of an argument.
        keep: Arguments that are never spoiled.
    """

    call: Callable[..., Any]
    arguments: Mapping[str, SearchStrategy[Any]] | SearchStrategy[dict[str, Any]]
    wrong: SearchStrategy[Any] = WRONG
    right: Callable[[Any, Mapping[str, Any]], None] = field(default=lambda result, given: None)
    called: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()


@dataclass
class Tried:
    """How many cases there were, and in how many of them the call worked."""

    cases: int = 0
    worked: int = 0


def try_out(target: Target, cases: int) -> Tried:
    """Try the property on so many cases, or a few more."""
    valid = target.arguments
    valid = valid if isinstance(valid, SearchStrategy) else st.fixed_dictionaries(dict(valid))
    tried = Tried()

    @settings(max_examples=cases, **SETTINGS)
    @given(st.data())
    def property_of(data: st.DataObject) -> None:
        given_arguments = data.draw(valid, label="right")
        names = [name for name in given_arguments if name not in target.keep]
        spoiled = data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True), label="spoiled")
        wrong = {name: data.draw(target.wrong, label=name) for name in spoiled}
        tried.worked += check(target, {**given_arguments, **wrong}, spoiled)
        tried.cases += 1

    property_of()
    return tried


def check(target: Target, arguments: Mapping[str, Any], spoiled: list[str]) -> bool:
    """One case; whether the call worked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = target.call(**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert spoiled, f"right arguments are refused: {message!r}"
        assert message and "\n" not in message and len(message) < 1000, f"not one line: {message!r}"
        known = [name for each in spoiled for name in (each, *target.called.get(each, "").split())]
        named = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in known)
        assert named, f"names none of {known}: {message!r}"
        return False
    target.right(result, arguments)
    return True


def finite(result: Any, arguments: Mapping[str, Any] | None = None) -> None:
    """Every number of a result, however nested, is finite."""
    for value in numbers_of(result):
        assert bool(np.isfinite(value).all()), f"not finite: {result!r}"


def numbers_of(result: Any) -> Iterator[Any]:
    """The numbers of a result, as arrays."""
    if isinstance(result, Tensor):
        yield result.detach().double().cpu().numpy()
    elif isinstance(result, bool | str | bytes) or result is None:
        return
    elif isinstance(result, int | float | np.ndarray | np.number):
        yield np.asarray(result, dtype=np.float64)
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from numbers_of(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from numbers_of(value)


def of_shape_of(name: str) -> Callable[[Any, Mapping[str, Any]], None]:
    """The result is a finite tensor of the shape of an argument."""

    def right(result: Any, arguments: Mapping[str, Any]) -> None:
        assert isinstance(result, Tensor) and result.shape == torch.as_tensor(arguments[name]).shape
        finite(result)

    return right
