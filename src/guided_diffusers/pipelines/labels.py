"""Class labels as people give them, by index or by name, to the indices that networks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int, shown
from guided_diffusers.models.labels import class_ids

Labels = int | str | Sequence[int | str] | Tensor


def value_of(config: Any, name: str) -> Any:
    """A value of a configuration of diffusers (a mapping) or of transformers (an object); None without it."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def class_names(config: Any) -> dict[int, str]:
    """The names of the classes in a configuration's `id2label`, by index; empty where it has none."""
    names = value_of(config, "id2label")
    try:
        return {} if names is None else {int(index): str(name) for index, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"id2label is {shown(names)}; allowed: names of classes by index") from None


def class_count(config: Any) -> int:
    """How many classes a classifier's configuration says it knows.

    Raises:
        ValueError: It says so nowhere.
    """
    for name in ("num_classes", "num_labels"):
        if (count := value_of(config, name)) is not None:
            return check_int(name, count, 1, 2**31)
    if names := class_names(config):
        return len(names)
    raise ValueError("the classifier's config has none of num_classes, num_labels and id2label; give one")


def class_indices(labels: Labels, config: Any, name: str = "class_labels") -> list[int]:
    """The indices of classes.

    Args:
        labels: One class or several, each an index or a name of `id2label`; a tensor holds indices.
        config: The classifier's configuration.
        name: The argument's name, for messages.

    Returns:
        One index a class given, at least one.

    Raises:
        ValueError: No class at all, an index outside the classes, an unknown or ambiguous name, or anything
            else.
    """
    ids = class_ids(labels, class_count(config), class_names(config), name)
    return ids.reshape(-1).tolist()


def labels_of(indices: Sequence[int], count: int | None, name: str = "class_labels") -> Tensor:
    """One class an image.

    Args:
        indices: One for all, or one an image.
        count: How many images, `MAX_COUNT` at most; None is as many as classes.
        name: The argument's name, for messages.

    Returns:
        `(count,)` int64.

    Raises:
        ValueError: Neither one class nor one an image.
    """
    if not isinstance(indices, Sequence) or isinstance(indices, str | bytes) or not indices:
        raise ValueError(f"{name} is {shown(indices)}; allowed: at least one class")
    indices = [check_int(name, index, 0, None) for index in indices]
    count = len(indices) if count is None else check_int("count", count, 1)
    if len(indices) not in (1, count):
        raise ValueError(f"{name} has {len(indices)} classes for {count} images; give 1 or {count}")
    return torch.tensor(indices, dtype=torch.int64).expand(count)
