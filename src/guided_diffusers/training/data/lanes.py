"""The order of a stream's rows: shards in a random order, dealt out to lanes, and a buffer of rows in each.

A lane reads its shards one after another, fills a block of so many rows, and gives them in a random order;
while it gives one it reads one of the next block. What comes at which place is a function of (seed, epoch,
lane) and of the rows themselves, so that where a lane is takes a few numbers: where its block began, and how
many of its rows were given. To go on it reads the block again. A block ends with its epoch: in every epoch a
lane gives each row of its shards once.

Lanes are numbered over all processes, and who reads a lane changes nothing in it: a run may go on under
another number of processes, as long as that divides the number of lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from datasets import IterableDataset

from guided_diffusers.core.checks import one_line
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.training.data.opening import LACKS_END, has_its_end
from guided_diffusers.training.engine.order import permutation

MANY = 8
"""With so many shards a lane and more, lanes whose numbers of shards differ by one are even enough."""


class Place(NamedTuple):
    """Where a lane reads: in an epoch, in which of the shards dealt to it, after how many of its rows."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


class Row(NamedTuple):
    """The cells of a row by column, or what is wrong with the rest of a shard; and what to call it."""

    cells: dict[str, Any] | str
    name: str


class Shards:
    """The parts of a stream that are read apart: files, or row groups of parquet.

    Args:
        dataset: the stream.
        name: what errors call it.
    """

    def __init__(self, dataset: IterableDataset, name: str) -> None:
        if dataset.num_shards < MANY:
            dataset = dataset.reshard()
        self.count, self._dataset, self._name = dataset.num_shards, dataset, name

    def rows(self, number: int, start: int = 0) -> Iterator[Row]:
        """The rows of a shard, without the first `start`; a shard that breaks off ends in what it said."""
        shard, where = self._dataset.shard(self.count, number), f"shard {number} of {self._name}"
        try:
            # not iter(shard): in a worker of torch's that would give the worker a share of the shard
            batches = (shard.skip(start) if start else shard).iter(batch_size=1)
            for row, batch in enumerate(batches, start):
                cells = {column: values[0] for column, values in batch.items()}
                if "__url__" in cells:
                    where = f"{cells['__url__']}"
                yield Row(cells, f"row {row} of {where}")
            if where.endswith(".tar") and not has_its_end(where):
                yield Row(LACKS_END, where)
        except MemoryError:
            raise
        except Exception as error:  # as tarfile, Arrow or the file system raises it
            yield Row(f"breaks off or cannot be read ({type(error).__name__}: {one_line(error)})", where)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One reader of a stream.

    Attributes:
        shards: of the stream.
        seed: of the order.
        number: of the lane.
        lanes: how many there are.
        block: rows in its buffer.
    """

    shards: Shards
    seed: int
    number: int
    lanes: int
    block: int

    @property
    def parts(self) -> int:
        """Into how many every shard is split, by its rows in turn, so that lanes come out even."""
        even = self.shards.count >= MANY * self.lanes
        return 1 if even else self.lanes // math.gcd(self.lanes, self.shards.count)

    def dealt(self, epoch: int) -> list[tuple[int, int]]:
        """The lane's shards in an epoch, in their order: (shard, part of its rows)."""
        seed = seed_for(seed_for(self.seed, Stream.SHARDS), epoch)
        order = permutation(seed, self.shards.count * self.parts).tolist()[self.number :: self.lanes]
        return [divmod(each, self.parts) for each in order]

    def read(self, place: Place) -> Iterator[tuple[Place, Row | None]]:
        """Rows in the order of the shards, each with the place after it, without end; None ends an epoch."""
        epoch, first, start = place
        while True:
            for shard, (number, part) in enumerate(self.dealt(epoch)[first:], first):
                for row, each in enumerate(self.shards.rows(number, start), start):
                    broken = isinstance(each.cells, str)
                    if part == (0 if broken else row % self.parts):
                        yield Place(epoch, shard + 1) if broken else Place(epoch, shard, row + 1), each
                start = 0
            epoch, first = epoch + 1, 0
            yield Place(epoch), None

    def rows(self, place: Place = Place(), given: int = 0) -> Iterator[tuple[Row, Place, int]]:  # noqa: B008
        """Rows in the order of training, without end: each with its block's beginning, and its number there.

        Args:
            place: where the block begins to go on from.
            given: how many of its rows were given.
        """
        source = self.read(place)
        block, beginning = _Block(place), given
        block.fill(source, self.block)
        while True:
            seed = seed_for(seed_for(self.seed, Stream.BUFFER), self.number)
            for part in block.place:
                seed = seed_for(seed, part)
            order, following = permutation(seed, len(block.rows)).tolist(), _Block(block.end)
            for number in range(beginning, len(order)):
                row, block.rows[order[number]] = block.rows[order[number]], None
                yield row, block.place, number + 1
                following.fill(source, min(len(following.rows) + 1, self.block))
            following.fill(source, self.block)
            block, beginning = following, 0


class _Block:
    """Rows being gathered, up to so many or to the end of an epoch."""

    def __init__(self, place: Place) -> None:
        self.place, self.end = place, place
        self.rows: list[Row | None] = []
        self._whole = False

    def fill(self, source: Iterator[tuple[Place, Row | None]], count: int) -> None:
        """Read until there are `count` rows."""
        while len(self.rows) < count and not self._whole:
            self.end, row = next(source)
            if row is not None:
                self.rows.append(row)
            elif self.rows:
                self._whole = True
            elif self.place.shard or self.place.row:  # the epoch was over where the block before ended
                self.place = self.end
            else:
                raise ValueError("data.path: a whole epoch of the stream has no row")


def lane_count(shards: int, processes: int, batch_size: int, wanted: int | None) -> int:
    """How many lanes a stream is read in: those that were asked for, or up to 16 that come out even.

    Raises:
        ValueError: the number asked for is no multiple of `processes` or no divisor of the batch.
    """
    if wanted is not None:
        if wanted % processes or batch_size % wanted:
            raise ValueError(
                f"data.readers is {wanted}; allowed: a multiple of the {processes} processes that divides "
                f"training.batch_size, {batch_size}"
            )
        return wanted
    fitting = [n for n in range(processes, max(16, processes) + 1, processes) if batch_size % n == 0]
    even = [n for n in fitting if shards % n == 0 or shards >= MANY * n]
    return max(even, default=processes)
