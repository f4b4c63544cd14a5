"""Image-text data of any size: read as they come, shuffled by a buffer, decoded in workers, and kept nowhere.

An `ImageTextStream` stands where an `ImageTextDataset` does. What there are row numbers, which index a file
of all rows, here are `Rows`, the rows themselves; and a task whose data are a stream has it as its `source`.
Shards are read by the library datasets, in the order that `lanes` says, and torch's DataLoader runs the
workers. Where the stream is after a batch is a few numbers a lane, which travel with the batch.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from guided_diffusers.core.checks import check_choice, check_that
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.training.data.column_types import class_names
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset, chosen_captions, from_bytes
from guided_diffusers.training.data.lanes import Lane, Place, Row, Shards, lane_count
from guided_diffusers.training.data.opening import load_image_text
from guided_diffusers.training.data.precomputed import MOMENTS, Precomputed
from guided_diffusers.training.data.rows import CAPTIONS, PIXELS, Decoder, Rows, StreamedLabels
from guided_diffusers.training.data.workers import Chunks, endless, turns
from guided_diffusers.training.engine.order import Share, uniform_for

logger = logging.getLogger(__name__)

SAMPLED = 10_000
"""Rows whose captions are read where all of them would be listed."""
HELD_OUT = 1_000
"""Rows of a held-out split that are measured on."""


class ImageTextStream:
    """Rows of image-text data as they come, of which none is kept.

    Attributes:
        config: the configuration.
        seed: of the order, and of the mirrored ones.
        features: the types of the columns.
        precomputed: what made the latents that there are in the place of pictures; None of pictures.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        """Opens the stream.

        Raises:
            ValueError: as of `opening.load_image_text`.
        """
        check_that(config.buckets is None, "data.buckets", config.buckets, "null with data.stream")
        self.config, self.seed, self.precomputed = config, seed, Precomputed.of(config.path)
        if self.precomputed is not None:
            config = replace(config, image_column=MOMENTS)
        dataset = load_image_text(config)
        self.features = dataset.features
        self.shards = Shards(dataset, repr(config.path))
        names = None if config.caption_column is None else class_names(self.features[config.caption_column])
        self.decoder = Decoder(config=config, caption_names=names, precomputed=self.precomputed)

    @property
    def source(self) -> ImageTextStream:
        """Itself: where a task's samples come from."""
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: (channels, height, width)."""
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def pixels(self, rows: Rows) -> Tensor:
        """Images as the network sees them, `(batch, channels, height, width)`, float32 in [-1, 1]."""
        return from_bytes(rows.columns[PIXELS])

    def captions(
        self, rows: Rows, positions: Sequence[int], seed: int = 0, column: str = CAPTIONS
    ) -> list[str] | list[Tensor]:
        """One caption a row; of several, the one that (seed, position) chooses.

        With `column` EMBEDDINGS it is the caption's embedding instead, (length, width).

        Raises:
            ValueError: there is no caption column.
        """
        check_that(column in rows.columns, "caption_column", None, f"a column of {self.config.path!r}")
        return chosen_captions(rows.columns[column], positions, seed)

    def all_captions(self) -> list[str]:
        """Distinct captions of a bounded sample, sorted: what a tokenizer is trained on.

        Raises:
            ValueError: there is no caption column, or no row has a caption.
        """
        check_that(self.config.caption_column, "caption_column", None, f"a column of {self.config.path!r}")
        found: set[str] = set()
        for row in self._sample(SAMPLED):
            captions = self.decoder.captions(row)
            found.update([] if isinstance(captions, str) else captions)
        check_that(found, f"captions of {self.config.path!r}", [], "at least one")
        return sorted(found)

    def labels(self, column: str) -> StreamedLabels:
        """The classes of a column of class numbers, which every row is now read with.

        Raises:
            ValueError: there is no such column, or it is not known how many classes it has.
        """
        check_choice(f"column of {self.config.path!r}", column, list(self.features))
        names, count = class_names(self.features[column]), self.config.num_classes
        if names is None and count is None:
            raise ValueError(
                f"data.num_classes is None, and label_column {column!r} of {self.config.path!r} has no "
                "names; allowed in a stream: the number of its classes, whose column holds 0, 1, ..."
            )
        self.decoder = replace(self.decoder, label_column=column, classes=count or len(names), names=names)
        return StreamedLabels(column, count or len(names), names)

    def in_memory(self, count: int) -> ImageTextDataset:
        """The first rows, in the order of training, as a data set that is decoded and kept.

        Raises:
            ValueError: there are latents in the place of pictures.
        """
        if self.precomputed is not None:
            raise ValueError(
                f"data.path {self.config.path!r} holds latents, and what is measured here needs pictures; "
                "allowed: the pictures themselves, with data.stream"
            )
        cells = [row.cells for row in self._sample(count)]
        config = replace(self.config, mirror=False, on_corrupt="skip" if self.config.skips else "raise")
        return ImageTextDataset(config, Dataset.from_list(cells, features=self.features))

    def _sample(self, count: int) -> Iterator[Row]:
        """The first rows that can be read of one epoch, its shards in the order of training."""
        lane = Lane(shards=self.shards, seed=self.seed, number=0, lanes=1, block=1)
        rows = (row for _, row in itertools.takewhile(lambda item: item[1] is not None, lane.read(Place())))
        return itertools.islice((row for row in rows if not isinstance(row.cells, str)), count)

    # as a task's source

    @contextmanager
    def reader(
        self, state: Mapping[str, Any] | None, share: Share
    ) -> Iterator[Callable[[Sequence[int]], tuple[Rows, dict[str, Any]]]]:
        """Open the stream at a state: by lane where its block began, how many were given and left out.

        Raises:
            ValueError: the state is of a number of readers that does not go with the processes or the batch.
        """
        begun = state or {}
        wanted = begun.get("readers", self.config.readers)
        lanes = lane_count(self.shards.count, share.processes, share.batch_size, wanted)
        each, workers = lanes // share.processes, self._workers(share, lanes // share.processes)
        own = range(share.process * each, (share.process + 1) * each)
        starts = [begun.get(str(number), (Place(), 0, 0)) for number in own]
        order = [self.shards.count, self.config.shuffle_buffer, self.seed]
        if begun and begun["order"] != order:
            told = "shards, shuffle_buffer and seed were %s and are %s: the stream goes on with a new epoch"
            logger.warning(told, begun["order"], order)
            starts = [((place[0] + 1, 0, 0), 0, skipped) for place, _, skipped in starts]
        shared = {"shards": self.shards, "seed": self.seed, "lanes": lanes}
        block = math.ceil(self.config.shuffle_buffer / lanes)
        readers = [Lane(number=number, block=block, **shared) for number in own]
        begin = list(zip(readers, starts, strict=True))
        chunks = Chunks(self.decoder, begin, share.batch_size // lanes, workers)
        loader = DataLoader(chunks, batch_size=None, num_workers=workers)
        with closing(endless(loader)) as given:

            def read(positions: Sequence[int]) -> tuple[Rows, dict[str, Any]]:
                parts = [part for part in itertools.islice(given, turns(each, workers)) if part is not None]
                if failed := [part for part in parts if isinstance(part, Exception)]:
                    raise failed[0]
                rows = Rows.joined([Rows(columns) for columns, _ in parts])
                if self.config.mirror:
                    mirrored = uniform_for(seed_for(self.seed, Stream.MIRRORED), list(positions)) < 0.5
                    rows.columns[PIXELS][mirrored] = rows.columns[PIXELS][mirrored].flip(-1)
                places = {str(number): place for number, (_, place) in zip(own, parts, strict=True)}
                return rows, {"readers": lanes, "order": order, **places}

            yield read

    def skipped(self, state: Mapping[str, Any]) -> int:
        """How many rows of this process were left out so far."""
        return sum(lane[-1] for number, lane in state.items() if number.isdecimal())

    def _workers(self, share: Share, lanes: int) -> int:
        wanted = self.config.workers
        if wanted is None:
            cores = (os.cpu_count() or 1) // share.processes
            wanted = 0 if share.on_cpu else min(4, cores - 1)
        return max(0, min(wanted, lanes))


def open_data(config: DataConfig, seed: int) -> ImageTextDataset | ImageTextStream:
    """A data set, in memory or streamed as its configuration says; `seed` is of a stream's order."""
    return ImageTextStream(config, seed) if config.stream else _decoded(config)


def _decoded(config: DataConfig) -> ImageTextDataset:
    """A data set in memory, which of several processes the first decodes."""
    with PartialState().main_process_first():
        return ImageTextDataset(config)


def open_held_out(config: DataConfig, split: str, count: int | None = None) -> ImageTextDataset:
    """The rows of another split, not mirrored, in memory; of a stream at most `HELD_OUT` of the first.

    Args:
        config: of the training data.
        split: which other.
        count: so many of its first rows; None for all.

    Raises:
        ValueError: the data are a stream of files named one by one, which are one split's.
    """
    if not config.stream:
        part = split if count is None else f"{split}[:{count}]"
        return _decoded(replace(config, split=part, mirror=False))
    named = not os.path.isdir(config.path) and (os.path.exists(config.path) or set("*?{") & set(config.path))
    if split != config.split and (named or "://" in config.path):
        raise ValueError(
            f"the held-out split is {split!r}, and data.path {config.path!r} names files of one split, "
            f"{config.split!r}; allowed in a stream: a folder or a dataset of the Hub that has both"
        )
    stream = ImageTextStream(replace(config, split=split, mirror=False), seed=0)
    return stream.in_memory(min(HELD_OUT, count or HELD_OUT))
