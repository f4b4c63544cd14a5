"""Values of published configurations, which come as text, as YAML or as Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guided_diffusers.core.checks import check_that, shown


def read_flags(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its defaults, values of their defaults' types; text as on a command line.

    Raises:
        ValueError: A name that is no flag, or a value that cannot be read.
    """
    check_that(isinstance(config, Mapping), "config", config, "a mapping of flags to values")
    unknown = [name for name in config if name not in defaults]
    check_that(not unknown, "keys of config", unknown, ", ".join(sorted(defaults)))
    return {name: typed(name, config.get(name, default), default) for name, default in defaults.items()}


_LARGEST = 1 << 20
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def typed(name: str, value: Any, default: Any) -> Any:
    """A value of its default's type; values whose default is no bool, int or float as they are."""
    try:
        if isinstance(default, bool):
            return value if isinstance(value, bool) else _WORDS[str(value).lower()]
        if isinstance(default, int) and float(value) == int(value):
            return int(value)
        if isinstance(default, float):
            return float(value)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        pass
    kind = type(default).__name__
    check_that(not isinstance(default, int | float), name, value, f"a {kind}, such as {default}")
    return value


def numbers(name: str, flags: Mapping[str, Any]) -> list[int]:
    """The positive integers of a flag."""
    values = listed(name, flags[name])
    fits = all(1 <= value <= _LARGEST and value == int(value) for value in values)
    check_that(fits, name, flags[name], "positive integers")
    return [int(value) for value in values]


def listed(name: str, given: str | Sequence[float] | int) -> list[float]:
    """Numbers, from text with commas, a sequence or one number."""
    items = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        return [float(item) for item in items if str(item).strip()]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"{name} is {shown(given)}; allowed: numbers, as '32,16,8' or a list") from None
