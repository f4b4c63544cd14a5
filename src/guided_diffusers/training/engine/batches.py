"""A process's share of each step's batch, prepared ahead by a background thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.order import data_order
from guided_diffusers.training.engine.setup import single_threaded_executor
from guided_diffusers.training.engine.task import Task


class Batches:
    """What each step of a process trains on, as a function of the position in training.

    Args:
        task: gives the samples.
        config: the batch over all processes, its parts, how many are prepared ahead.
        accelerator: says which process this is, and its device.
    """

    def __init__(self, task: Task, config: TrainingConfig, accelerator: Accelerator) -> None:
        self._task, self._config, self._accelerator = task, config, accelerator
        self.part_size = config.batch_size // (accelerator.num_processes * config.gradient_accumulation)

    def between(self, seen: int, stop: int) -> Iterator[list[Any]]:
        """The batches from one position to another, each in its accumulation parts, on the device."""
        size, ahead = self._config.batch_size, self._config.prefetch_batches
        starts = range(seen, stop, size)
        if not ahead:
            yield from (self._to_device(self._prepare(start)) for start in starts)
            return
        with single_threaded_executor() as thread:
            pending = [thread.submit(self._prepare, start) for start in starts[:ahead]]
            for start in starts:
                batch = pending.pop(0).result()
                following = start + ahead * size
                if following < stop:
                    pending.append(thread.submit(self._prepare, following))
                yield self._to_device(batch)

    def samples(self, start: int, count: int) -> Any:
        """The first of this process's samples in the batch at a position, on the device."""
        return self._to_device(self._samples(self._first(start), count))

    def _prepare(self, start: int) -> list[Any]:
        first, parts = self._first(start), range(self._config.gradient_accumulation)
        return [self._samples(first + part * self.part_size, self.part_size) for part in parts]

    def _first(self, start: int) -> int:
        share = self.part_size * self._config.gradient_accumulation
        return start + self._accelerator.process_index * share

    def _samples(self, first: int, count: int) -> Any:
        positions = list(range(first, first + count))
        order = getattr(self._task, "order", None) or data_order
        indices = order(self._config.seed, positions, self._task.num_samples)
        return self._task.batch(indices, positions)

    def _to_device(self, batch: Any) -> Any:
        return send_to_device(batch, self._accelerator.device, non_blocking=True)
