"""Class labels: by index or by name, as numbers that a classifier can look up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import shown
from guided_diffusers.core.condition import Condition


def class_ids(
    labels: Any, num_classes: int, names: Mapping[int, str] | None = None, argument: str = "labels"
) -> Tensor:
    """Labels as indices.

    Args:
        labels: An index or a name, a sequence of them, or an integer tensor.
        num_classes: How many classes there are.
        names: The name of each index, where classes have names.
        argument: What errors call the labels.

    Returns:
        Indices, int64, of shape () for one label and (count,) for several.

    Raises:
        ValueError: A label outside the classes, an unknown name, no label, or what is none at all.
    """
    if isinstance(labels, Tensor):
        kind = f"shape {tuple(labels.shape)} and {labels.dtype}"
        real = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if labels.ndim > 1 or not real:
            raise ValueError(f"{argument} are of {kind}; allowed: integers, one or one a sample")
        labels = labels.tolist()
    several = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    indices = [_index_of(label, num_classes, names, argument) for label in (labels if several else [labels])]
    if not indices:
        raise ValueError(f"{argument} is empty; allowed: one label, or one a sample")
    return torch.tensor(indices if several else indices[0])


class NamedClassesMixin:
    """Labels by index or name, for a model whose configuration has `num_classes` and `id2label`."""

    def class_ids(self, labels: Any) -> Tensor:
        """Labels of any form that `log_prob` takes, as int64 indices: () for one, (count,) for several.

        Raises:
            ValueError: A label outside the classes, or an unknown name.
        """
        labels = labels.positive if isinstance(labels, Condition) else labels
        if isinstance(labels, Mapping):
            if "class_labels" not in labels:
                raise ValueError(f"the condition has {', '.join(labels)}; the classifier needs class_labels")
            labels = labels["class_labels"]
        return class_ids(labels, self.config.num_classes, self.class_names)

    def ids_for(self, sample: Tensor, labels: Any) -> Tensor:
        """Labels as `class_ids` takes them, as one index a sample on its device, (batch,).

        Raises:
            ValueError: Another number of labels than samples, and what `class_ids` refuses.
        """
        ids = self.class_ids(labels)
        if ids.ndim == 1 and len(ids) not in (1, len(sample)):
            raise ValueError(
                f"labels has {len(ids)} labels for {len(sample)} samples; give 1 or {len(sample)}"
            )
        return ids.to(sample.device).expand(len(sample))

    @property
    def class_names(self) -> dict[int, str]:
        """The names in `config.id2label`, by index; empty where there are none."""
        return checked_names(self.config.id2label or {}, self.config.num_classes)


def checked_names(id2label: Mapping[int | str, str], num_classes: int) -> dict[int, str]:
    """Names of classes with integer keys, as a configuration read from JSON does not have them.

    Raises:
        ValueError: A key that is no class, or two classes of one name.
    """
    try:
        names = {int(index): str(name) for index, name in id2label.items()}
    except (TypeError, ValueError):
        raise ValueError(f"id2label has the keys {_shown(list(id2label))}; allowed: class indices") from None
    outside = [index for index in names if not 0 <= index < num_classes]
    if outside:
        raise ValueError(f"id2label names class {_shown(outside)}; allowed: 0 to {num_classes - 1}")
    if len(set(names.values())) < len(names):
        twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
        raise ValueError(f"id2label has two classes named {_shown(twice)}; names must differ")
    return names


def _index_of(label: Any, num_classes: int, names: Mapping[int, str] | None, argument: str) -> int:
    indices = f"indices, 0 to {num_classes - 1}"
    label = label if isinstance(label, bool) or not isinstance(label, Integral) else int(label)
    if isinstance(label, str):
        found = [index for index, known in (names or {}).items() if known == label]
        if len(found) == 1:
            return found[0]
        if found:
            count = f"{len(found)} classes"
            raise ValueError(f"{argument} has {label!r}, which is the name of {count}; allowed: {indices}")
        if not names:
            raise ValueError(f"{argument} has {label!r}, and these classes have no names; allowed: {indices}")
        close = get_close_matches(label, names.values(), n=3, cutoff=0.5) or list(names.values())[:5]
        raise ValueError(f"{argument} has {label!r}, which is no class; did you mean {_shown(close)}?")
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"{argument} has {shown(label)}; allowed: {indices}, or names of classes")
    if not 0 <= label < num_classes:
        raise ValueError(f"{argument} has {shown(label)}; allowed: 0 to {num_classes - 1}, the known classes")
    return label


def _shown(values: list[Any]) -> str:
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(map(repr, values[:5])) + more
