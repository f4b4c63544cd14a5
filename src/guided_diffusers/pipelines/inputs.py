"""Input checks that pipelines share: each names the argument, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ValueError where `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError where `value` is not an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError where `value` is not a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; allowed: a number from 0 to 1")


def check_size(name: str, value: Any, multiple: int) -> None:
    """Raise ValueError where a height or width is not a positive multiple of the autoencoder's factor."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % multiple:
        raise ValueError(f"{name} is {value!r}; allowed: a positive multiple of {multiple}, in pixels")


def check_prompts(name: str, value: Any) -> None:
    """Raise ValueError where `value` is neither a string nor a non-empty list of strings."""
    if isinstance(value, str):
        return
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is a {type(value).__name__}; allowed: a string or a list of strings")
    if not value:
        raise ValueError(f"{name} is an empty list; allowed: a string or a list of at least one")
    for index, prompt in enumerate(value):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{index}] is a {type(prompt).__name__}; allowed: strings")


def check_one_of(first: str, first_value: Any, second: str, second_value: Any, *, required: bool) -> None:
    """Raise ValueError where two exclusive arguments are both given or, if one is required, both missing."""
    if first_value is not None and second_value is not None:
        raise ValueError(f"{first} and {second} were both given; allowed: one of them")
    if required and first_value is None and second_value is None:
        raise ValueError(f"neither {first} nor {second} was given; give one of them")


def check_embeds(name: str, value: Any, width: int | None) -> None:
    """Raise ValueError where embeddings are not `(batch, length, width)`; a width of None allows any."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; allowed: a tensor of shape (batch, length, width)"
        )
    if value.ndim != 3 or (width is not None and value.shape[2] != width):
        expected = "width" if width is None else width
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: (batch, length, {expected})")


def check_generator(value: Any, batch_size: int) -> None:
    """Raise ValueError where `generator` is neither a torch.Generator nor one for each image."""
    if value is None or isinstance(value, torch.Generator):
        return
    if not isinstance(value, list | tuple) or not all(isinstance(each, torch.Generator) for each in value):
        raise ValueError(
            f"generator is {value!r}; allowed: a torch.Generator, or a list with one for each image"
        )
    if len(value) != batch_size:
        raise ValueError(
            f"generator is a list of {len(value)} for {batch_size} images; allowed: one for each image"
        )


def check_names(name: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ValueError where a name is not among the allowed ones."""
    unknown = [value for value in values if value not in allowed]
    if unknown:
        raise ValueError(f"{name} has {unknown[0]!r}; allowed: {', '.join(map(repr, allowed))}")
