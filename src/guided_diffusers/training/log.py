"""The training log: a JSON line a record, and means that cost no synchronisation until they are read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ByBin(NamedTuple):
    """A metric to be reported a bin: `values` (batch,), `bins` (batch,) integers in [0, num_bins)."""

    values: Tensor
    bins: Tensor
    num_bins: int = 4


class Meter:
    """Means since the last reading. Scalars, (batch,) tensors and `ByBin`s are summed on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor | float | ByBin]) -> None:
        """Take in one step's metrics."""
        for name, value in metrics.items():
            sums = self._summed(value)
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    @staticmethod
    def _summed(value: Tensor | float | ByBin) -> Tensor:
        """(bins, 2): sum and count."""
        if isinstance(value, ByBin):
            bins = torch.nn.functional.one_hot(value.bins, value.num_bins).double()
            return torch.stack([value.values.double() @ bins, bins.sum(0)], dim=-1)
        value = torch.as_tensor(value).detach().double()
        return torch.stack([value.sum(), value.new_tensor(value.numel())])

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Any]:
        """The means by name - a list for a `ByBin`, with None for a bin without samples - then start anew.

        Args:
            reduce: adds up sums over processes.
        """
        record: dict[str, Any] = {}
        for name, sums in self._sums.items():
            total, count = reduce(sums).unbind(-1)
            mean = (total / count).tolist()
            if isinstance(mean, list):
                mean = [
                    value if samples else None for value, samples in zip(mean, count.tolist(), strict=True)
                ]
            record[name] = mean
        self._sums = {}
        return record


class JsonLines:
    """A file of one JSON object a line; records past the position a run resumes from are dropped.

    Args:
        path: the file, created when missing.
        images_seen: records of later positions are removed (the resumed run writes them again).
    """

    def __init__(self, path: str | Path, images_seen: int = 0) -> None:
        self.path = Path(path)
        self._start = time.monotonic()
        self._earlier = 0.0
        kept = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            record = _parsed(line)
            if record is not None and record["images"] <= images_seen:
                kept.append(line + "\n")
                self._earlier = record["seconds"]
        self.path.write_text("".join(kept))

    @property
    def seconds(self) -> float:
        """Wall seconds of training, those before an interruption included."""
        return self._earlier + time.monotonic() - self._start

    def write(self, images: int, record: Mapping[str, Any]) -> None:
        """Append a record at a position in training."""
        with self.path.open("a") as file:
            file.write(json.dumps({"images": images, "seconds": round(self.seconds, 3), **record}) + "\n")


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A record as trackers take it: nested keys joined by "/", list items by their number."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = {str(number): item for number, item in enumerate(value) if item is not None}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the line that a crash cut short
        return None
