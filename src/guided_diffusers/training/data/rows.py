"""Rows of a stream, and what becomes of their cells."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import one_line
from guided_diffusers.store.columns import captions_of, class_numbers
from guided_diffusers.training.data.dataset import DataConfig, named_captions
from guided_diffusers.training.data.decoding import decode_cell
from guided_diffusers.training.data.lanes import Row
from guided_diffusers.training.data.precomputed import EMBEDDINGS, MOMENTS, Precomputed

logger = logging.getLogger(__name__)

TOLD = 10
"""Rows left out of which each lane tells; all are counted."""

PIXELS, CAPTIONS = "pixels", "captions"
Columns = dict[str, Any]


class Rows:
    """Some rows of a stream, where row numbers stand otherwise.

    Args:
        columns: by name a tensor or a list, all of one length.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        """How many."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, part: slice) -> Rows:
        """Some of them."""
        return Rows({name: values[part] for name, values in self.columns.items()})

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """One after another."""
        columns = {name: [part.columns[name] for part in parts] for name in parts[0].columns}
        return Rows(
            {
                name: torch.cat(values) if isinstance(values[0], Tensor) else list(itertools.chain(*values))
                for name, values in columns.items()
            }
        )


class StreamedLabels:
    """The classes of a stream's rows, where a tensor of all labels stands otherwise.

    Attributes:
        column: their column.
        count: how many classes there are.
        names: by number, where the data name them.
    """

    def __init__(self, column: str, count: int, names: list[str] | None) -> None:
        self.column, self.count, self.names = column, count, names

    def __getitem__(self, rows: Rows) -> Tensor:
        """The class of each row, (rows,) int64."""
        return rows.columns[self.column]

    def max(self) -> int:
        """The highest class."""
        return self.count - 1


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What becomes of a row's cells, in a worker.

    Attributes:
        config: of the data.
        caption_names: of the classes, where those are the captions.
        label_column: of classes; None for none.
        classes: how many there are.
        names: of the classes, where they have any.
        precomputed: what made the latents that there are in the place of pictures.
    """

    config: DataConfig
    caption_names: list[str] | None = None
    label_column: str | None = None
    classes: int = 0
    names: list[str] | None = None
    precomputed: Precomputed | None = None

    def __call__(self, row: Row) -> Columns | str:
        """The row's columns, each of one, or what is wrong with it, to be read aloud."""
        if isinstance(row.cells, str):
            return row.cells
        image, columns = row.cells[self.config.image_column], {}
        if self.precomputed is not None:
            columns[MOMENTS] = self.precomputed.moments(image["bytes"])
            if self.precomputed.text_encoder is not None:
                columns[EMBEDDINGS] = [list(map(self.precomputed.embedding, row.cells[EMBEDDINGS]))]
        else:
            pixels = decode_cell(image, self.config)
            if isinstance(pixels, str):
                return pixels
            columns[PIXELS] = torch.from_numpy(pixels.copy())[None]
        if self.config.caption_column is not None:
            captions = self.captions(row)
            if isinstance(captions, str):
                return captions
            columns[CAPTIONS] = [captions]
        if self.label_column is not None:
            where, names = f"label_column {self.label_column!r}", self.names or list(range(self.classes))
            try:
                columns[self.label_column] = class_numbers([row.cells[self.label_column]], where, names)[0]
            except ValueError as error:
                return f"has no class: {one_line(error)}"
        return columns

    def captions(self, row: Row) -> list[str] | str:
        """The row's captions, at least one, or what is wrong with it."""
        column, cell = self.config.caption_column, row.cells[self.config.caption_column]
        if self.caption_names is not None:
            cell = named_captions(cell, self.caption_names)
        try:
            return captions_of([cell], f"column {column!r}")[0]
        except ValueError as error:
            return f"has no caption: {one_line(error)}"


def report(row: Row, problem: str, skips: bool, before: int) -> str:
    """Tell of a row that cannot be read, or raise ValueError; the sentence.

    Args:
        row: which.
        problem: what is wrong with it, to be read aloud.
        skips: whether it may be left out.
        before: how many were left out before it.
    """
    message = f"{row.name} {problem}"
    if not skips:
        raise ValueError(f'{message}. Mend or drop it, or leave such out with data.on_corrupt: "skip"')
    if before < TOLD:
        logger.warning("%s (skipped%s)", message, ", the rest without a word" if before == TOLD - 1 else "")
    return message
