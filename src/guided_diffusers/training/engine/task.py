"""What a training script provides to the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from guided_diffusers.training.engine.log import ByBin

Metrics = Mapping[str, Tensor | float | ByBin]


class Task(Protocol):
    """What is trained, and on what.

    Attributes:
        modules: the trained networks by name; the engine moves them to the device, in place, and may split
            their parameters over processes (`training.sharding`): they are whole in `losses` alone.
        averaged: names of those whose weights are averaged, snapshotted (`save_pretrained`) and exported.
        optimizers: by name, over parameters of the modules; a group's `lr` is its peak, which the schedule
            scales.
        num_samples: size of the data set.
        order: optional; `(seed, positions, num_samples) -> rows` in the place of `order.data_order`.
        validates_together: optional; True: `validate` is called by every process, so that each may do a share
            (`parallel.by_shares`); the main one writes, and its metrics count. Without it, by that one alone.
        source: optional; where the samples come from instead, an `order.Source` such as a stream.
        allows_bfloat16: optional; True: `mixed_precision: auto` may take bfloat16, which learns as well as
            float32 does. Without it auto is float32.
    """

    modules: Mapping[str, nn.Module]
    averaged: Collection[str]
    optimizers: Mapping[str, Optimizer]
    num_samples: int

    def batch(self, indices: list[int], positions: list[int]) -> Any:
        """CPU tensors (nested in tuples, lists, dicts) of some samples.

        Runs in a background thread: a pure function of its arguments, so no global random numbers; draw from
        `randomness.randn_for(seed, positions, ...)`.

        Args:
            indices: rows of the data set, or what the source gives in their place.
            positions: for each, its position in training, which its randomness depends on.
        """

    def losses(self, batch: Any) -> Iterator[tuple[str, Tensor, Metrics]]:
        """Yield (optimizer's name, 0-dim loss, metrics), one after another.

        Each loss is stepped before the next is asked for, and only the parameters of its optimizer receive
        gradients from it. `batch` is on the device.
        """

    # A task may have `begin(folder)`: writes into the run's folder, before the first step, what belongs to
    # the run beside its weights, such as a tokenizer. Where it has `snapshot(folder, modules)`, that
    # writes the averaged networks of a snapshot, in the place of each one's `save_pretrained`.

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Measure or draw with the averaged weights; files go to `folder`, metrics (if any) to the log."""

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write what users load into an empty folder, with the averaged weights in `modules`."""
