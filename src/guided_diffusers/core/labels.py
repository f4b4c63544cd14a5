"""Class labels, as people and data sets give them, by index or by name: the one reader of them.

A label is what `class_index` says: a whole number below the number of classes, or the name of one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that, shown


def class_index(label: Any, num_classes: float, by_name: Mapping[str, Sequence[int]]) -> int | None:
    """The index that a label is; None of what is none.

    Args:
        label: A whole number, or a name.
        num_classes: How many classes there are; infinity where that is not known.
        by_name: As of `by_names`.
    """
    if isinstance(label, str):
        found = by_name.get(label, ())
        return found[0] if len(found) == 1 else None
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    return int(label) if whole and 0 <= label < num_classes else None


def by_names(names: Mapping[int, str]) -> dict[str, list[int]]:
    """The indices of the classes of each name."""
    found: dict[str, list[int]] = {}
    for index, name in names.items():
        found.setdefault(name, []).append(index)
    return found


def class_ids(
    labels: Any,
    num_classes: int,
    names: Mapping[int, str] | None = None,
    argument: str = "labels",
    count: int | None = None,
) -> Tensor:
    """Labels as indices.

    Args:
        labels: An index or a name, a sequence of them, or an integer tensor.
        num_classes: How many classes there are.
        names: The name of each index, where classes have names.
        argument: What errors call the labels.
        count: How many images they are of: one label for all, or one each. None is as many as labels.

    Returns:
        Indices, int64: `(count,)`; without a count of shape () for one label and `(labels,)` for several.

    Raises:
        ValueError: A label outside the classes, an unknown name, no label, what is none at all, or neither
            one label nor one an image.
    """
    if isinstance(labels, Tensor):
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        check_that(whole and labels.ndim < 2, argument, labels, "integers, one or one a sample")
        labels = labels.tolist()
    several = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    by_name, indices = by_names(names or {}), []
    for label in labels if several else [labels]:
        index = class_index(label, num_classes, by_name)
        if index is None:
            raise ValueError(f"{argument} has {shown(label)}{_why_none(label, num_classes, by_name)}")
        indices.append(index)
    check_that(indices, argument, labels, "one label, or one a sample")
    if count is None:
        return torch.tensor(indices if several else indices[0])
    if len(indices) not in (1, count):
        raise ValueError(f"{argument} has {len(indices)} classes for {count} images; give 1 or {count}")
    return torch.tensor(indices).expand(count)


def told_classes(
    labels: Any, num_classes: int | None, count: int, argument: str = "class_labels"
) -> Tensor | None:
    """The class of each image that a network is told; None of one that knows no classes.

    Raises:
        ValueError: Labels for a network without classes, none for one with, or what `class_ids` refuses.
    """
    known = num_classes is not None
    allowed = "a class for all, or one an image" if known else "None: the network has no classes"
    check_that(known == (labels is not None), argument, labels, allowed)
    return None if num_classes is None else class_ids(labels, num_classes, None, argument, count)


def _why_none(label: Any, num_classes: int, by_name: Mapping[str, Sequence[int]]) -> str:
    """Why a label is none, and what is allowed, in words that follow it."""
    indices = f"indices, 0 to {num_classes - 1}"
    if not isinstance(label, str):
        return f"; allowed: {indices}, or names of classes"
    if label in by_name:
        return f", which is the name of {len(by_name[label])} classes; allowed: {indices}"
    if not by_name:
        return f", and these classes have no names; allowed: {indices}"
    close = get_close_matches(label, list(by_name), n=3, cutoff=0.5) or list(by_name)[:5]
    return f", which is no class; did you mean {', '.join(map(repr, close))}?"
