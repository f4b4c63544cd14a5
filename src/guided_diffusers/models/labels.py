"""The classes of a model, as its configuration says them: how many there are, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from guided_diffusers.core.checks import check_int, check_that, shown
from guided_diffusers.core.condition import Condition
from guided_diffusers.core.labels import class_ids


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
