"""What torch's DataLoader runs to read a stream: the rows of a step, lane by lane, decoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from guided_diffusers.core.checks import one_line
from guided_diffusers.training.data.lanes import Lane, Place
from guided_diffusers.training.data.rows import Columns, Decoder, Rows, report


class Chunks(IterableDataset):
    """A step's rows of one lane after another, without end; in a worker, of every so many lanes.

    DataLoader asks its workers in turn, so those that have a lane fewer give None in its place.

    Args:
        decoder: of the rows.
        lanes: of this process, each with where it goes on: its block's place, rows given, rows left out.
        size: rows a lane gives in a step.
        workers: how many read; 0: this process.
    """

    def __init__(
        self, decoder: Decoder, lanes: Sequence[tuple[Lane, Sequence[Any]]], size: int, workers: int
    ) -> None:
        self._decoder, self._lanes, self._size, self._workers = decoder, lanes, size, max(1, workers)

    def __iter__(self) -> Iterator[tuple[Columns, list[Any]] | Exception | None]:
        worker = torch.utils.data.get_worker_info()
        own = self._lanes[0 if worker is None else worker.id :: self._workers]
        count = turns(len(self._lanes), self._workers) // self._workers
        readers = [self._read(*each) for each in own]
        try:
            while True:
                for reader in readers:
                    yield next(reader)
                yield from itertools.repeat(None, count - len(readers))
        except (ValueError, OSError) as error:  # from a worker DataLoader would raise it with a traceback
            yield from itertools.repeat(error)

    def _read(self, lane: Lane, start: Sequence[Any]) -> Iterator[tuple[Columns, list[Any]]]:
        """What a lane gives of each step, and where it is then."""
        place, given, skipped = Place(*start[0]), *start[1:]
        columns: list[Rows] = []
        good, epoch, problem = place != Place(), place.epoch, ""
        for row, began, count in lane.rows(place, given):
            if began.epoch != epoch:
                if not good:
                    path = self._decoder.config.path
                    raise ValueError(f"no row of {path!r} can be read; the last: {problem}")
                good, epoch = False, began.epoch
            found = self._decoder(row)
            if isinstance(found, str):
                problem = report(row, found, self._decoder.config.skips, skipped)
                skipped += 1
                continue
            good = True
            columns.append(Rows(found))
            if len(columns) == self._size:
                yield Rows.joined(columns).columns, [list(began), count, skipped]
                columns = []


def turns(lanes: int, workers: int) -> int:
    """How often the workers are asked in a step."""
    return math.ceil(lanes / max(1, workers)) * max(1, workers)


def endless(loader: DataLoader) -> Generator[Any, None, None]:
    """What the loader gives; a worker that failed or died is one sentence."""
    try:
        yield from loader
    except (RuntimeError, EOFError, ConnectionError) as error:  # the latter two: it died while it sent
        cause = one_line(error)
        if isinstance(error, RuntimeError) and "worker" not in cause:
            raise
        raise OSError(f"a process that reads the data has died (data.workers): {cause}") from error
