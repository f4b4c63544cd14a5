"""Ranges said once, in the annotation of a field, and the one reader that checks and converts by them.

    @dataclass(frozen=True, kw_only=True)
    class Config(Declared):
        momentum: Annotated[float, Between(-1, 1)] = -0.5
        threshold: Annotated[float, Above(0)] | None = None
        form: Literal["score", "mean_shift"] = "score"
        widths: tuple[Annotated[int, AtLeast(1)], ...] = (64, 128)

    Config(momentum=2)                      # momentum is 2; allowed: a finite number between -1 and 1
    build(Config, {"threshold": "1e-3"}, text=True)                     # of YAML, or the command line

In `Annotated` a `Range` limits a number, or how many items anything else has; a text says in words what is
allowed; a function is the reader of a kind that has its own, as a dataclass's classmethod `of` is. Values of
other classes are taken as they are.
"""

from __future__ import annotations

import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from numbers import Integral
from typing import Any, ClassVar, Literal

from guided_diffusers.core.ranges import (  # noqa: F401 - what a field is annotated with is of one place
    Above,
    Amount,
    AtLeast,
    Between,
    Count,
    Positive,
    Range,
    Share,
    Text,
    Whole,
    Within,
)
from guided_diffusers.core.shown import as_number, shown


class Declared:
    """Base of frozen dataclasses whose fields are checked, and converted, by `read` when they are made."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        """Read every field. What concerns several fields is checked by a subclass, after this."""
        cls: Any = type(self)
        for name, kind in kinds_of(cls).items():
            value = getattr(self, name)
            if not isinstance(value, _taken(kind)[0]):  # most: 7 calls fewer of 100 before a network's
                object.__setattr__(self, name, read(name, value, kind))


@cache
def kinds_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by name.

    Raises:
        TypeError: One names what the module that wrote it does not hold when it runs.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(f"the annotations of {cls.__name__} cannot be read: {error}; import it") from error
    return {item.name: hints[item.name] for item in fields(cls)}


class _UnfitError(Exception):
    """A value does not fit its kind."""


def read(name: str, value: Any, kind: Any, text: bool = False) -> Any:
    """A value as its annotation has it: of the type itself, lists as tuples where those are meant.

    Args:
        name: What errors call it.
        value: What was given.
        kind: The annotation.
        text: It was written in YAML or on a command line: a text may be a number, and a number a text.

    Raises:
        ValueError: Not allowed; it says what is.
        TypeError: What has to be called and cannot be.
    """
    classes, number, low, high, choices, reader = _taken(kind)
    exact = type(value)
    if isinstance(value, classes) or (exact is str and value in choices):
        return value
    if exact is number and low <= value <= high:
        return value
    if reader is not None:
        return reader(value)
    try:
        return _as(kind, value, name, text)
    except _UnfitError:
        error = TypeError if _is_called(kind) else ValueError
        raise error(f"{name} is {shown(value)}; allowed: {allowed(kind)}") from None


@cache
def _taken(kind: Any) -> tuple[tuple[Any, ...], type | None, float, float, tuple[str, ...], Any]:
    """Which values are taken as they are, which is most of them, so that nothing else has to be asked.

    Returns:
        Classes whose instances are; `int` or `float`, where numbers of it are that lie from the least to the
        greatest that follow; texts that are; and a kind's own reader.
    """
    rules, parts, origin = getattr(kind, "__metadata__", ()), typing.get_args(kind), _origin(kind)
    if rules and not any(isinstance(rule, Range) or callable(rule) for rule in rules):  # words alone
        return _taken(kind.__origin__)
    classes: tuple[Any, ...] = ()
    number: type | None = None
    low, high = -math.inf, math.inf
    choices: tuple[str, ...] = ()
    if rules or kind in (int, float):
        ranges = [rule for rule in rules if isinstance(rule, Range)] if rules else [Range()]
        of = kind.__origin__ if rules else kind
        among = typing.get_args(of) if _origin(of) is typing.Union else (of,)
        number = next((one for one in among if one in (int, float) and ranges), None)
        low = max([-math.inf, *(limits.least for limits in ranges)])
        high = min([math.inf, *(limits.greatest for limits in ranges)])
    elif origin is typing.Union:
        inner = [_taken(part) for part in parts]
        if all(each[0] for each in inner):
            classes = tuple(one for each in inner for one in each[0])
        else:
            classes = (type(None),) * (type(None) in parts)
    elif origin is Literal:
        choices = tuple(part for part in parts if isinstance(part, str))
    elif Callable in (origin, kind) or origin is Mapping:
        classes = (Mapping if origin is Mapping else Callable,)
    elif kind is not str and origin not in (tuple, list, dict):
        classes = (kind,) if kind in _CHECKED or is_dataclass(kind) else (object,)
    return classes, number, low, high, choices, next(filter(callable, rules), None)


_CHECKED = (bool, type(None), dict, Mapping, tuple, list)


def build(cls: type, values: Any, where: str = "", text: bool = False) -> Any:
    """A dataclass, and those inside it, from a mapping.

    Args:
        cls: The dataclass.
        values: By the names of its fields.
        where: The path of the mapping in a greater one, for errors.
        text: As of `read`.

    Raises:
        ValueError: An unknown key, named with the nearest known one, a missing one, or a value that is not
            allowed; it names the path.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or cls.__name__} is {shown(values)}; allowed: a mapping of keys")
    prefix, kinds = where and f"{where}.", kinds_of(cls)
    known = {item.name: item for item in fields(cls) if item.init}
    for key in values:
        if key not in known:
            raise ValueError(unknown(f"{prefix}{key}", [prefix + name for name in known]))
    given = {}
    for name, item in known.items():
        path = prefix + name
        if name in values:
            given[name] = read(path, values[name], kinds[name], text)
            item.metadata.get("check", lambda value, path: None)(given[name], path)
        elif is_dataclass(kinds[name]) and item.default is MISSING:
            given[name] = build(kinds[name], {}, path, text)
        elif not has_default(item):
            raise ValueError(f"{path} is required, and is not given")
    return cls(**given)


def has_default(item: Field[Any]) -> bool:
    """Whether a field may be left out."""
    return item.default is not MISSING or item.default_factory is not MISSING


def unknown(key: str, known: Iterable[str]) -> str:
    """What an error says of a key that is none of `known`."""
    nearest = next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)), None)
    return f"unknown key {shown(key)}" + (f": did you mean {nearest!r}?" if nearest else "")


def allowed(kind: Any) -> str:
    """What an annotation allows, in words."""
    origin, parts, rules = _origin(kind), typing.get_args(kind), getattr(kind, "__metadata__", ())
    if rules:
        said = [rule for rule in rules if isinstance(rule, str)]
        ranges = [rule for rule in rules if isinstance(rule, Range)]
        plain = "a number" if any(not each.finite for each in ranges) else allowed(parts[0])
        kind, comma, items = plain.partition(",") if parts[0] not in (int, float) else (plain, "", "")
        return said[0] if said else kind + "".join(map(str, ranges)) + comma + items
    if origin is Literal:
        return ", ".join(map(repr, parts))
    if origin is typing.Union:
        return ", or ".join(allowed(part) for part in sorted(parts, key=lambda part: part is not type(None)))
    if origin in (tuple, list) and parts:
        count = "" if origin is list or parts[1:] == (...,) else f" of {len(parts)}"
        return f"a list{count}, each item {allowed(parts[0])}"
    if is_dataclass(kind):
        return "a mapping of keys"
    return _WORDS.get(origin or kind) or str(getattr(kind, "__name__", kind))


_WORDS = {
    type(None): "None",
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "a text",
    tuple: "a list",
    list: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
    Callable: "a function",
}


def _origin(kind: Any) -> Any:
    """The type that an annotation is made of; of both ways to write a union, one."""
    origin = typing.get_origin(kind)
    return typing.Union if origin is types.UnionType else origin


def _is_called(kind: Any) -> bool:
    return Callable in (kind, _origin(kind)) or any(map(_is_called, typing.get_args(kind)))


def _as(kind: Any, value: Any, name: str, text: bool) -> Any:
    """The value, read by its annotation; `_UnfitError` where it is not allowed."""
    if rules := getattr(kind, "__metadata__", ()):
        for reader in filter(callable, rules):
            return reader(value)
        ranges = [rule for rule in rules if isinstance(rule, Range)]
        if kind.__origin__ in (int, float):
            return _number(kind.__origin__, value, text, ranges)
        given = _as(kind.__origin__, value, name, text)
        return _that(all(len(given) in limits for limits in ranges), given)
    origin, parts = _origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return _first_that_fits(parts, value, name, text)
    if kind in (int, float):
        return _number(kind, value, text, [Range()])
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if (of := getattr(kind, "of", None)) is not None:
            return of(value)
        return build(kind, _that(isinstance(value, Mapping), value), name, text)
    if kind is str:
        number = text and isinstance(value, int | float) and not isinstance(value, bool)
        return str(_that(number or isinstance(value, str | os.PathLike), value))
    if origin in (tuple, list):
        given = _that(isinstance(value, list | tuple), value)
        several = parts[:1] * len(given) if origin is list or parts[1:] == (...,) else parts
        _that(len(given) == len(several), value)
        return origin(_as(part, item, name, text) for part, item in zip(several, given, strict=True))
    if origin is dict:
        given = _that(isinstance(value, Mapping), value).items()
        return {read(name, key, parts[0]): read(f"{name}.{key}", item, parts[1], text) for key, item in given}
    if origin is Literal:
        if text and value is False and "no" in parts:  # YAML reads a bare `no` as False
            return "no"
        return _that(any(type(value) is type(choice) and value == choice for choice in parts), value)
    if Callable in (origin, kind):
        return _that(callable(value), value)
    kind = Mapping if origin is Mapping else kind
    return _that(kind not in _CHECKED or isinstance(value, kind), value)


def _that(fits: bool, value: Any) -> Any:
    if not fits:
        raise _UnfitError
    return value


def _first_that_fits(parts: Iterable[Any], value: Any, name: str, text: bool) -> Any:
    if value is None and type(None) in parts:
        return None
    for part in parts:
        with suppress(_UnfitError):
            return _as(part, value, name, text)
    raise _UnfitError


def _number(kind: type, value: Any, text: bool, ranges: Iterable[Range]) -> float | int:
    number: Any = as_number(value)
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    elif text and isinstance(value, str):  # YAML reads 1e-3 as a text
        with suppress(ValueError):
            number = float(value)
    elif kind is int and not text:
        number = None
    right = number is not None and all(number in each for each in ranges)
    _that(right and (kind is float or number == int(number)), value)
    return kind(number)
