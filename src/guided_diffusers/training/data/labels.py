"""Class labels of a data set: a column as class numbers with names, and subsets of it, stratified."""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.randomness import seed_for
from guided_diffusers.store.columns import class_numbers
from guided_diffusers.training.data.dataset import ImageTextDataset


def class_labels(
    data: ImageTextDataset, column: str, names: list[str] | None = None
) -> tuple[Tensor, list[str] | None]:
    """The class of each row, and the classes' names where they have any.

    Args:
        data: the rows.
        column: of class numbers (with names where its type is ClassLabel), or of names.
        names: those of the classes, when another split has settled them; a column of names is read by them.

    Returns:
        (rows,) int64, and the names by class number. A column of names gets its classes in sorted order.

    Raises:
        ValueError: a row without a class (-1 is none), a class outside `names`, or what is neither number nor
            name.
    """
    values, own = data.column(column), data.class_names(column)
    if own is not None and names is not None and own != names:  # another split numbers its classes otherwise
        values = [
            own[value] if isinstance(value, int) and 0 <= value < len(own) else value for value in values
        ]
    return class_numbers(values, f"label_column {column!r} of {data.config.path!r}", names or own)


def stratified_subset(labels: Tensor, count: int, seed: int, sources: int | None = None) -> Tensor:
    """Row numbers of a subset in which every class has its share; a function of the seed.

    Shares are rounded by largest remainder, so they are off by less than one row. Where classes are equally
    frequent, a smaller subset lies in every larger one of the same seed that has whole shares.

    Args:
        labels: (rows,), the class of each row.
        count: rows to take, from 1 to the number of sources.
        seed: of the choice.
        sources: how many rows are sources, all by default; of the rest, their mirror images in the same
            order, those of chosen rows are taken too.

    Returns:
        Row numbers, ascending: (count,), or with mirror images (2 count,).

    Raises:
        ValueError: `count` out of range.
    """
    sources = len(labels) if sources is None else sources
    check_int("num_labels", count, 1, sources)
    classes, frequency = labels[:sources].unique(return_counts=True)
    share = frequency.double() * count / sources
    quota = share.floor().long()
    short = count - int(quota.sum())
    quota[(share - quota).argsort(descending=True, stable=True)[:short]] += 1
    chosen = []
    for label, amount in zip(classes.tolist(), quota.tolist(), strict=True):
        rows = (labels[:sources] == label).nonzero()[:, 0]
        order = torch.tensor([seed_for(seed, row) for row in rows.tolist()]).argsort()
        chosen.append(rows[order[:amount]])
    subset = torch.cat(chosen).sort().values
    return torch.cat([subset + start for start in range(0, len(labels), sources)])
