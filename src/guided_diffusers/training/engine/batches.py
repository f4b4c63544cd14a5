"""A process's share of each step's batch, prepared ahead by a background thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.order import Numbered, Share, Source, data_order
from guided_diffusers.training.engine.setup import single_threaded_executor
from guided_diffusers.training.engine.task import Task


class Batches:
    """What each step of a process trains on: a function of the position in training, and of a stream's state.

    Args:
        task: gives the samples.
        config: the batch over all processes, its parts, how many are prepared ahead.
        accelerator: says which process this is, and its device.
    """

    def __init__(self, task: Task, config: TrainingConfig, accelerator: Accelerator) -> None:
        self._task, self._config, self._accelerator = task, config, accelerator
        self.part_size = config.batch_size // (accelerator.num_processes * config.gradient_accumulation)
        order = getattr(task, "order", None) or data_order
        numbered = Numbered(config.seed, task.num_samples, order)
        self._source: Source = getattr(task, "source", None) or numbered
        self._share = Share(
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            batch_size=config.batch_size,
            on_cpu=accelerator.device.type == "cpu",
        )
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any] | None:
        """Where the data are, of all processes, after the last batch given; None for rows by number.

        Every process has to ask.
        """
        if self._state is None:
            return None
        return {key: value for part in gather_object([self._state]) for key, value in part.items()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state_dict` gave."""
        self._state = None if state is None else dict(state)

    def figures(self) -> dict[str, int]:
        """What a record of the log says of the data; every process has to ask."""
        if self._state is None:
            return {}
        counts = torch.tensor(self._source.skipped(self._state), device=self._accelerator.device)
        return {"rows_skipped": int(self._accelerator.reduce(counts, "sum"))}

    def between(self, seen: int, stop: int) -> Iterator[list[Any]]:
        """The batches from one position to another, each in its accumulation parts, on the device."""
        size, ahead = self._config.batch_size, self._config.prefetch_batches
        starts = range(seen, stop, size)
        with self._source.reader(self._state, self._share) as read:

            def prepare(start: int) -> tuple[list[Any], dict[str, Any] | None]:
                first, count = self._first(start), self.part_size
                rows, state = read(range(first, first + self._share.size))
                parts = range(0, self._share.size, count)
                return [self._samples(rows, first, at, at + count) for at in parts], state

            if not ahead:
                for start in starts:
                    batch, self._state = prepare(start)
                    yield self._to_device(batch)
                return
            with single_threaded_executor() as thread:
                pending = [thread.submit(prepare, start) for start in starts[:ahead]]
                for start in starts:
                    batch, self._state = pending.pop(0).result()
                    following = start + ahead * size
                    if following < stop:
                        pending.append(thread.submit(prepare, following))
                    yield self._to_device(batch)

    def samples(self, start: int, count: int) -> Any:
        """The first of this process's samples in the batch at a position, on the device."""
        first = self._first(start)
        with self._source.reader(self._state, self._share) as read:
            rows, _ = read(range(first, first + self._share.size))
        return self._to_device(self._samples(rows, first, 0, count))

    def _first(self, start: int) -> int:
        return start + self._share.process * self._share.size

    def _samples(self, rows: Any, first: int, begin: int, end: int) -> Any:
        return self._task.batch(rows[begin:end], list(range(first + begin, first + end)))

    def _to_device(self, batch: Any) -> Any:
        return send_to_device(batch, self._accelerator.device, non_blocking=True)
