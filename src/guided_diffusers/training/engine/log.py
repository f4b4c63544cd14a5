"""The training log: a JSON line a record, and means that cost no synchronisation until they are read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guided_diffusers.store.files import room_for, write_atomically


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
            values = _precise(value.values.detach())
            bins = torch.nn.functional.one_hot(value.bins, value.num_bins).to(values.dtype)
            return torch.stack([values @ bins, bins.sum(0)], dim=-1)
        value = _precise(torch.as_tensor(value).detach())
        return torch.stack([value.sum(), value.new_tensor(value.numel())])

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far: a record that spans an interruption is then the same as without it."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `state_dict` gave."""
        self._sums = {name: sums.to(device) for name, sums in state.items()}

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
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            record = _parsed(line)
            if record is not None and record["images"] <= images_seen:
                kept.append(line + "\n")
                self._earlier = record["seconds"]
        write_atomically(self.path, lambda at: at.write_text("".join(kept)))

    @property
    def seconds(self) -> float:
        """Wall seconds of training, those before an interruption included."""
        return self._earlier + time.monotonic() - self._start

    def write(self, images: int, record: Mapping[str, Any]) -> None:
        """Append a record at a position in training."""
        with room_for(self.path), self.path.open("a") as file:
            whole = {"images": images, "seconds": round(self.seconds, 3), **record}
            file.write(json.dumps(_finite(whole), allow_nan=False) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a line that a crash cut short is left out."""
    found = (_parsed(line) for line in path.read_text(errors="replace").splitlines())
    return [record for record in found if record is not None]


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


def in_words(record: Mapping[str, Any], seen: int, total: int, speed: float) -> str:
    """A record as a line to read: how far the run is, what is left of it at this speed, and its numbers.

    Args:
        record: Numbers by name, nested as they are logged.
        seen: Images so far.
        total: Images in all.
        speed: Images a second.
    """
    left = (total - seen) / speed if speed > 0 else math.inf
    ends = f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in flatten(record).items())
    return f"{seen:,} of {total:,} images, {ends}: {numbers}"


def _precise(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()  # which has no float64


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None stands for them."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if record["images"] >= 0 and record["seconds"] >= 0 else None
    except (ValueError, LookupError, TypeError):  # the line that a crash cut short
        return None
