"""Class labels as people give them, by index or by name, to the indices that networks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Labels = int | str | Sequence[int | str] | Tensor


def class_names(config: Mapping[str, Any]) -> dict[int, str]:
    """The names of the classes in a configuration's `id2label`, by index; empty where it has none."""
    return {int(index): name for index, name in (config.get("id2label") or {}).items()}


def class_count(config: Mapping[str, Any]) -> int:
    """How many classes a classifier's configuration says it knows.

    Raises:
        ValueError: It says so nowhere.
    """
    for name in ("num_classes", "num_labels"):
        if config.get(name) is not None:
            return int(config[name])
    if names := class_names(config):
        return len(names)
    raise ValueError("the classifier's config has none of num_classes, num_labels and id2label; give one")


def class_indices(labels: Labels, config: Mapping[str, Any], name: str = "class_labels") -> list[int]:
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
    count, names = class_count(config), class_names(config)
    given = labels.reshape(-1).tolist() if isinstance(labels, Tensor) else labels
    many = given if isinstance(given, list | tuple | range) else [given]
    if not many:
        raise ValueError(f"{name} is empty; allowed: a class for all, or one an image")
    return [_index(label, count, names, name) for label in many]


def _index(label: Any, count: int, names: Mapping[int, str], argument: str) -> int:
    if isinstance(label, str):
        found = [index for index, known in names.items() if known == label]
        if len(found) != 1:
            allowed = ", ".join(map(repr, names.values())) or f"indices, 0 to {count - 1}: it names none"
            why = f"is the name of {len(found)} classes" if found else "is no class of the classifier"
            raise ValueError(f"{argument} has {label!r}, which {why}; allowed: {allowed}")
        return found[0]
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"{argument} has {label!r}; allowed: indices, 0 to {count - 1}, or names of classes")
    if not 0 <= label < count:
        raise ValueError(f"{argument} has {label}; allowed: 0 to {count - 1}, the classes of the classifier")
    return label


def labels_of(indices: Sequence[int], count: int | None, name: str = "class_labels") -> Tensor:
    """One class an image.

    Args:
        indices: One for all, or one an image.
        count: How many images; None is as many as classes.
        name: The argument's name, for messages.

    Returns:
        `(count,)` int64.

    Raises:
        ValueError: Neither one class nor one an image.
    """
    count = len(indices) if count is None else count
    if len(indices) not in (1, count):
        raise ValueError(f"{name} has {len(indices)} classes for {count} images; give 1 or {count}")
    return torch.tensor(indices, dtype=torch.int64).expand(count)
