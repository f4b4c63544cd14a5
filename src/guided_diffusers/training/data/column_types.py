"""Which types of columns can hold images, and which texts."""

from __future__ import annotations

from typing import Any

from datasets import Array2D, Array3D, ClassLabel, Value
from datasets import Image as ImageFeature

TEXTS = ("string", "large_string", "string_view", "null")
FILES = ("string", "large_string", "string_view", "binary", "large_binary")


def holds_images(feature: Any) -> bool:
    """Whether a column of this type can hold images.

    They may be images as such, {"bytes", "path"} or one of both, or arrays (height, width) or (height, width,
    channels) of numbers.
    """
    if isinstance(feature, dict):
        return "bytes" in feature or "path" in feature
    file = isinstance(feature, Value) and feature.dtype in FILES
    return isinstance(feature, ImageFeature) or file or pixel_type(feature) is not None


def holds_texts(feature: Any) -> bool:
    """Whether a column of this type can hold captions: texts or class labels, one or a list of them a row."""
    return class_names(feature) is not None or (
        isinstance(one := _element(feature), Value) and one.dtype in TEXTS
    )


def class_names(feature: Any) -> list[str] | None:
    """The names of the classes that a column of class labels, or of lists of them, holds the numbers of."""
    one = _element(feature)
    return list(one.names) if isinstance(one, ClassLabel) and one.names else None


def _element(feature: Any) -> Any:
    """The type of a list's elements; any other type as it is."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def pixel_type(feature: Any) -> str | None:
    """The type of the numbers in arrays of two or three dimensions; None of another type."""
    if isinstance(feature, Array2D | Array3D):
        return feature.dtype
    depth = 0
    while _element(feature) is not feature:
        feature, depth = _element(feature), depth + 1
    number = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float"))
    return feature.dtype if number and depth in (2, 3) else None


def type_name(feature: Any) -> str:
    """A column's type as errors say it, cut at 80 characters."""
    text = feature.dtype if isinstance(feature, Value) else " ".join(repr(feature).split())
    return text if len(text) < 80 else f"{text[:80]}..."
