"""Compares the time of two functions by interleaved pairs.

Both run in one process, alternately, and the order within a pair alternates too: what drifts (clock
frequency, a neighbour's load) meets both alike. A pair gives one ratio; the figure is the median over pairs,
its interval the percentile bootstrap over pairs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.evaluation import Estimate


@dataclass(frozen=True, kw_only=True)
class PairedTimes:
    """Seconds of each run: `first_s[i]` and `second_s[i]` were measured one right after the other."""

    first_s: list[float]
    second_s: list[float]

    def ratio(self, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
        """The median over pairs of first / second, with its bootstrap interval."""
        first, second = (torch.tensor(times, dtype=torch.float64) for times in (self.first_s, self.second_s))
        ratios = first / second
        low, high = _bootstrap_median(ratios, confidence, resamples, seed)
        return Estimate(value=ratios.quantile(0.5).item(), low=low, high=high, count=len(ratios))

    def report(self, bound: float | None = None) -> dict[str, Any]:
        """For JSON: the ratio, median seconds of each side, whether the interval's upper end is in bounds."""
        report: dict[str, Any] = {
            "ratio": {name: _rounded(value) for name, value in self.ratio().to_dict().items()},
            "first_median_s": _rounded(_median(self.first_s)),
            "second_median_s": _rounded(_median(self.second_s)),
        }
        if bound is not None:
            report |= {"bound": bound, "within_bound": self.ratio().high <= bound}
        return report


def time_pairs(
    first: Callable[[], object], second: Callable[[], object], pairs: int = 20, warmup: int = 2
) -> PairedTimes:
    """Times two functions without arguments, `pairs` times each after `warmup` untimed runs of both.

    A time ends when what was queued on a GPU has ended too.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    for _ in range(warmup):
        first(), second(), wait()
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for index in range(pairs):
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                start = time.perf_counter()
                (first, second)[which](), wait()
                times[which].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return PairedTimes(first_s=times[0], second_s=times[1])


def line(name: str, report: dict[str, Any]) -> str:
    """One line to read: the ratio, its interval, the seconds, the bound."""
    ratio = report["ratio"]
    text = (
        f"{name}: {ratio['value']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}] over {ratio['count']} pairs "
        f"({report['first_median_s']:.4g} s / {report['second_median_s']:.4g} s)"
    )
    if "bound" in report:
        text += f", bound {report['bound']}: {'ok' if report['within_bound'] else 'EXCEEDED'}"
    return text


def _bootstrap_median(values: Tensor, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    medians = values[draws].quantile(0.5, dim=1)
    tail = (1 - confidence) / 2
    low, high = medians.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _median(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


def _nothing() -> None:
    """What a CPU has to wait for."""


def _rounded(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.5g}")
