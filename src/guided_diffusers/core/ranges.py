"""Ranges of numbers, as annotations say them: `Annotated[float, Between(-1, 1)]`; `declared` reads them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`. Annotations say it by `Within`, `Between`, `Above` or `AtLeast`.

    Args:
        low: The least.
        high: The greatest.
        ends: Which of the two are in it: "[]", "(]", "[)" or "()".
        finite: Whether infinity is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    ends: str = "[]"
    finite: bool = True

    def __contains__(self, number: float) -> bool:
        """Whether a number is in it; NaN never is."""
        above = number > self.low if self.ends[0] == "(" else number >= self.low
        below = number < self.high if self.ends[1] == ")" else number <= self.high
        return above and below and not (self.finite and abs(number) == math.inf)

    @property
    def least(self) -> float:
        """The least number in it."""
        low = math.nextafter(self.low, math.inf) if self.ends[0] == "(" else self.low
        return max(low, -sys.float_info.max) if self.finite else low

    @property
    def greatest(self) -> float:
        """The greatest number in it."""
        high = math.nextafter(self.high, -math.inf) if self.ends[1] == ")" else self.high
        return min(high, sys.float_info.max) if self.finite else high

    def __str__(self) -> str:
        """In words, to follow those of the type: " above 0"."""
        low, high = f"{self.low:,.12g}", f"{self.high:,.12g}"
        bottom = "above" if self.ends[0] == "(" else "of at least"
        if math.isinf(self.high):
            return "" if math.isinf(self.low) else f" {bottom} {low}"
        if math.isinf(self.low):
            return f" of at most {high}"
        if self.ends in ("()", "[]"):
            return f" between {low} and {high}" if self.ends == "()" else f" from {low} to {high}"
        return f" {bottom} {low} and {'below' if self.ends[1] == ')' else 'at most'} {high}"


def Within(low: float, high: float, ends: str = "[]") -> Range:
    """`low <= number <= high`; other ends as of `Range`."""
    return Range(low, high, ends)


def Between(low: float, high: float) -> Range:
    """`low < number < high`."""
    return Range(low, high, "()")


def Above(low: float, finite: bool = True) -> Range:
    """`number > low`."""
    return Range(low, ends="(]", finite=finite)


def AtLeast(low: float, finite: bool = True) -> Range:
    """`number >= low`."""
    return Range(low, finite=finite)


Positive = Annotated[float, Above(0)]
Amount = Annotated[float, AtLeast(0)]
Share = Annotated[float, Within(0, 1)]
Count = Annotated[int, AtLeast(1)]
Whole = Annotated[int, AtLeast(0)]
Text = Annotated[str, AtLeast(1), "text that is not empty"]
