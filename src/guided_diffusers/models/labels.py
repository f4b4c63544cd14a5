"""Class labels: by index or by name, as numbers that a classifier can look up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that, shown
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
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        check_that(whole and labels.ndim < 2, argument, labels, "integers, one or one a sample")
        labels = labels.tolist()
    several = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    indices = [_index_of(label, num_classes, names, argument) for label in (labels if several else [labels])]
    check_that(indices, argument, labels, "one label, or one a sample")
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
            check_that("class_labels" in labels, "the condition", list(labels), "one with class_labels")
            labels = labels["class_labels"]
        return class_ids(labels, self.config.num_classes, self.class_names)

    def ids_for(self, sample: Tensor, labels: Any) -> Tensor:
        """Labels as `class_ids` takes them, as one index a sample on its device, (batch,).

        Raises:
            ValueError: Another number of labels than samples, and what `class_ids` refuses.
        """
        ids = self.class_ids(labels)
        fits = ids.ndim == 0 or len(ids) in (1, len(sample))
        check_that(fits, "labels", labels, f"1 or {len(sample)} labels, one a sample")
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
    keys = [int(key) if str(key).isdecimal() else -1 for key in id2label]
    fits = all(0 <= key < num_classes for key in keys)
    check_that(fits, "the keys of id2label", list(id2label), f"class indices, 0 to {num_classes - 1}")
    names = [str(name) for name in id2label.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    check_that(not twice, "the name of two classes in id2label", twice, "names that differ")
    return dict(zip(keys, names, strict=True))


def _index_of(label: Any, num_classes: int, names: Mapping[int, str] | None, argument: str) -> int:
    indices = f"indices, 0 to {num_classes - 1}"
    label = label if isinstance(label, bool) or not isinstance(label, Integral) else int(label)
    if isinstance(label, str):
        found = [index for index, known in (names or {}).items() if known == label]
        if len(found) == 1:
            return found[0]
        known = list((names or {}).values())
        if found:
            told = f", which is the name of {len(found)} classes; allowed: {indices}"
        elif not known:
            told = f", and these classes have no names; allowed: {indices}"
        else:
            close = get_close_matches(label, known, n=3, cutoff=0.5) or known[:5]
            told = f", which is no class; did you mean {', '.join(map(repr, close))}?"
    elif isinstance(label, int) and not isinstance(label, bool) and 0 <= label < num_classes:
        return label
    else:
        told = f"; allowed: {indices}, or names of classes"
    raise ValueError(f"{argument} has {shown(label)}{told}")
