"""Cells of a data set as captions and as class numbers: the one reader of training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.labels import by_names, class_index


def captions_of(cells: Sequence[Any], where: str, rows: Sequence[int] | None = None) -> list[list[str]]:
    """The captions of each cell, at least one: a text, or a list of texts without its missing ones.

    Args:
        cells: One a row.
        where: What errors call the column.
        rows: What they call the rows; by default their places.

    Raises:
        ValueError: A row without a caption, or with what is no text.
    """
    captions = []
    for row, cell in zip(range(len(cells)) if rows is None else rows, cells, strict=True):
        texts = [cell] if isinstance(cell, str) else cell
        texts = [text for text in texts if text is not None] if isinstance(texts, list) else texts
        if not texts:
            raise ValueError(
                f'row {row} has no caption in {where}: give it one (an empty string "" is the unconditional '
                "case) or drop the row"
            )
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"row {row} has {shown(cell)} in {where}; allowed: a text, or a list of texts")
        captions.append(texts)
    return captions


def class_numbers(
    values: Sequence[Any], where: str, names: list[str] | None = None
) -> tuple[Tensor, list[str] | None]:
    """The class of each row, and the classes' names where they have any.

    Args:
        values: Class numbers, or names, one a row.
        where: What errors call the column.
        names: Those of the classes, where they are settled; values that are names are read by them.

    Returns:
        (rows,) int64, and the names by class number. Names that are not settled are in sorted order.

    Raises:
        ValueError: A row without a class (None, or -1 as data sets write it), a name or a number outside
            `names`, or what is neither number nor name.
    """
    named = isinstance(next((value for value in values if value is not None), None), str)
    if named and names is None:
        names = sorted({value for value in values if isinstance(value, str)})
    limit = math.inf if names is None else len(names)
    known = by_names(dict(enumerate(names or ())))
    numbers = []
    for row, value in enumerate(values):
        number = class_index(value, limit, known)
        if number is None or named != isinstance(value, str):
            allowed = "a class number, 0 or more, or a class's name" if names is None else f"one of {names}"
            none = ", which is no class" if value == -1 else ""
            raise ValueError(f"row {row} has {shown(value)}{none} in {where}; allowed: {allowed}")
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.int64), names
