"""Annotations as the one place of ranges: what they let through, what they make of it, what errors say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from guided_diffusers.core.declared import (
    Above,
    AtLeast,
    Between,
    Count,
    Declared,
    Text,
    Within,
    allowed,
    build,
    read,
)


@dataclass(frozen=True)
class Inner(Declared):
    width: Count = 1


@dataclass(frozen=True, kw_only=True)
class Outer(Declared):
    scale: Annotated[float, Within(0, 1)]
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


HALF_OPEN = Annotated[float, Within(0, 1, "[)")]
FUNCTION = Annotated[Callable[[int], int], "a function of an integer"]


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        (float, 2, 2.0),
        (float, torch.tensor(2), 2.0),
        (float, Fraction(1, 2), 0.5),
        (int, np.int64(3), 3),
        (Annotated[float, Between(-1, 1)], 0.99, 0.99),
        (HALF_OPEN, 0, 0.0),
        (Annotated[float, Above(0, finite=False)], float("inf"), float("inf")),
        (float | None, None, None),
        (Literal["a", True], True, True),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float] | float, [1, 2], (1.0, 2.0)),
        (list[Count], (1, 2), [1, 2]),
        (dict[str, Inner], {"a": {"width": 2}}, {"a": Inner(2)}),
        (str, Path("folder/file"), "folder/file"),
        (Annotated[Any, lambda value: [value]], 1, [1]),
        (FUNCTION, abs, abs),
    ],
)
def test_a_value_becomes_what_its_annotation_says(kind, given, kept):
    made = read("it", given, kind)
    assert made == kept and type(made) is type(kept)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (float, float("nan"), "it is nan; allowed: a finite number"),
        (float, float("inf"), "it is inf; allowed: a finite number"),
        (float, "1e-3", "it is '1e-3'; allowed: a finite number"),
        pytest.param(float, 10**400, "it is 10+...; allowed: a finite number", id="huge"),
        (Annotated[float, Above(0)], 0, "it is 0; allowed: a finite number above 0"),
        (Annotated[float, Above(0, finite=False)], float("nan"), "it is nan; allowed: a number above 0"),
        (Annotated[float, Between(-1, 1)], 1, "it is 1; allowed: a finite number between -1 and 1"),
        (HALF_OPEN, 1, "it is 1; allowed: a finite number of at least 0 and below 1"),
        (Annotated[int, Within(1, 10_000)], 0, "it is 0; allowed: an integer from 1 to 10,000"),
        (int, 1.0, "it is 1.0; allowed: an integer"),
        (int, True, "it is True; allowed: an integer"),
        (Count | None, 0, "it is 0; allowed: None, or an integer of at least 1"),
        (bool, 1, "it is 1; allowed: True or False"),
        (Literal["a", "b"], "c", "it is 'c'; allowed: 'a', 'b'"),
        (Literal["1"], 1, "it is 1; allowed: '1'"),
        (tuple[float, float], [1], r"it is \[1\]; allowed: a list of 2, each item a finite number"),
        (list[Count], [1, 0], r"it is \[1, 0\]; allowed: a list, each item an integer of at least 1"),
        (list[int], "12", "it is '12'; allowed: a list"),
        (Annotated[list[int], AtLeast(1), "some integers"], [], r"it is \[\]; allowed: some integers"),
        (
            Annotated[list[int], AtLeast(1)],
            [],
            r"it is \[\]; allowed: a list of at least 1, each item an integer",
        ),
        (Text, "", "it is ''; allowed: text that is not empty"),
        (dict[str, Count], {"a": 0}, "it.a is 0; allowed: an integer of at least 1"),
        (Inner, 3, "it is 3; allowed: a mapping of keys"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(kind, given, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        read("it", given, kind)


def test_what_cannot_be_called_is_a_type_error():
    for kind in (FUNCTION, FUNCTION | None):
        with pytest.raises(TypeError, match="it is 3; allowed: .*a function of an integer"):
            read("it", 3, kind)


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [(float, "1e-3", 1e-3), (int, 8.0, 8), (str, 12, "12"), (Literal["auto", "no"], False, "no")],
)
def test_what_yaml_and_a_command_line_write_is_read_as_it_is_meant(kind, written, meant):
    assert read("it", written, kind, text=True) == meant
    with pytest.raises(ValueError):
        read("it", written, kind)


def test_a_dataclass_is_built_from_a_mapping_and_checks_itself():
    made = build(Outer, {"scale": 1, "other": {"width": 3}})
    assert made == Outer(scale=1.0, inner=Inner(1), other=Inner(3))
    with pytest.raises(ValueError, match="^scale is 2; allowed: a finite number from 0 to 1$"):
        Outer(scale=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scal": 1}, "unknown key 'run.scal': did you mean 'run.scale'"),
        ({}, "run.scale is required"),
        ({"scale": 2}, "run.scale is 2"),
        ({"scale": 1, "inner": {"width": 0}}, "run.inner.width is 0"),
        ({"scale": 1, "other": {"widht": 0}}, "unknown key 'run.other.widht'.*'run.other.width'"),
        (3, "run is 3; allowed: a mapping of keys"),
    ],
)
def test_a_mistake_in_a_mapping_is_named_by_its_path(values, words):
    with pytest.raises(ValueError, match=words):
        build(Outer, values, "run")


def test_words_for_help():
    assert allowed(Annotated[int, AtLeast(0)] | None) == "None, or an integer of at least 0"
