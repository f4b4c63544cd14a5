"""Input checks that pipelines share: each names the argument, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.callbacks import IPAdapterScaleCutoffCallback
from torch import Tensor

from guided_diffusers.core.checks import (
    a_kind_of,
    check_finite,
    shown,
)
from guided_diffusers.core.checks import check_choice as check_choice  # pipelines find all their checks here
from guided_diffusers.core.networks import needed_arguments
from guided_diffusers.core.randomness import check_generator as check_generator

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_SIDE = 16_384
"""The longest side of an image, in pixels."""


def check_size(name: str, value: Any, multiple: int) -> None:
    """Raise ValueError where a height or width is not a positive multiple of the autoencoder's factor."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= value <= MAX_SIDE or value % multiple:
        raise ValueError(
            f"{name} is {shown(value)}; allowed: a positive multiple of {multiple}, in pixels, up to "
            f"{MAX_SIDE:,}"
        )


def check_one_of(first: str, first_value: Any, second: str, second_value: Any) -> None:
    """Raise ValueError where two exclusive arguments are both given."""
    if first_value is not None and second_value is not None:
        raise ValueError(f"{first} and {second} were both given; allowed: one of them")


def check_embeds(name: str, value: Any, width: int | None) -> None:
    """Raise ValueError where embeddings are not `(batch, length, width)`; a width of None allows any."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = a_kind_of(value) if not isinstance(value, Tensor) else shown(value)
        raise ValueError(f"{name} is {given}; allowed: a floating-point tensor (batch, length, width)")
    if value.ndim != 3 or 0 in value.shape or (width is not None and value.shape[2] != width):
        expected = "width" if width is None else width
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: (batch, length, {expected})")
    check_finite(name, value)


def check_latents(value: Any, expected: Sequence[int], name: str = "latents") -> None:
    """Raise ValueError where latents are not a floating-point tensor of a shape."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    if not floating or tuple(value.shape) != tuple(expected):
        given = tuple(value.shape) if floating else shown(value)
        raise ValueError(f"{name} is {given}; allowed: a floating-point tensor of shape {tuple(expected)}")
    check_finite(name, value)


def check_callback(value: Any, names: Any, allowed: Sequence[str]) -> None:
    """Raise ValueError where `callback_on_step_end` is none of these pipelines, or asks for others."""
    name, listed = "callback_on_step_end_tensor_inputs", ", ".join(map(repr, allowed))
    if not isinstance(names, list | tuple):
        raise ValueError(f"{name} is {shown(names)}; allowed: a list of {listed}")
    unknown = [each for each in names if not isinstance(each, str) or each not in allowed]
    if unknown:
        raise ValueError(f"{name} has {shown(unknown[0])}; allowed: {listed}")
    if value is not None and not callable(value):
        raise ValueError(f"callback_on_step_end is {shown(value)}; allowed: None, or a function")
    if any(isinstance(each, IPAdapterScaleCutoffCallback) for each in getattr(value, "callbacks", [value])):
        raise ValueError(
            "callback_on_step_end has an IPAdapterScaleCutoffCallback; allowed: others, because this "
            "pipeline has no IP-Adapter"
        )


def checked_return(value: Any, allowed: Sequence[str]) -> Mapping[str, Any]:
    """What a callback returned: tensors by name, of the allowed names; nothing at all is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"callback_on_step_end returned {shown(value)}; allowed: None, or a mapping of names to tensors"
        )
    for name, tensor in value.items():
        if name not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"callback_on_step_end returned {shown(name)}; allowed: {names}")
        if not isinstance(tensor, Tensor) and (tensor is not None or name != "negative_prompt_embeds"):
            raise ValueError(f"callback_on_step_end's {name} is {shown(tensor)}; allowed: a tensor")
    return value


def check_rows(
    name: str, value: Any, like: Tensor, rows: Sequence[int], *, any_length: bool = False
) -> Tensor:
    """Embeddings in the dtype and on the device of others, where they have one of these numbers of rows.

    Raises:
        ValueError: No embeddings, or of another shape.
    """
    check_embeds(name, value, like.shape[2])
    if len(value) not in rows or not (any_length or value.shape[1] == like.shape[1]):
        count = " or ".join(map(str, rows))
        allowed = f"({count}, {'length' if any_length else like.shape[1]}, {like.shape[2]})"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: {allowed}")
    return value.to(like)


def check_unet(unet: Any, told: Sequence[str], name: str = "unet") -> None:
    """Raise ValueError where a pipeline has a network that it cannot run; see `check_told`."""
    check_told(unet, told, name)
    check_sees_noise(unet, name)


def check_told(unet: Any, told: Sequence[str], name: str = "unet") -> None:
    """Raise ValueError where a network has to be told what its pipeline does not tell it; None passes.

    Args:
        unet: A network of diffusers; others may be anything.
        told: What the pipeline tells it beside sample and timestep.
        name: The component's name.
    """
    kind = type(unet).__name__
    for argument, why in needed_arguments(unet).items():
        if argument not in told:
            raise ValueError(
                f"{name} is a {kind} that has to be told {argument} ({why}), and is not by this pipeline; "
                f"use {_INSTEAD.get(argument, _ITS_OWN)}, or sampling_loop with a Condition that has it"
            )


def check_sees_noise(unet: Any, name: str = "unet") -> None:
    """Raise ValueError where a network sees more than the noise that it draws from; None passes."""
    config = getattr(unet, "config", None) or {}
    seen, drawn = config.get("in_channels"), config.get("out_channels")
    if None not in (seen, drawn) and drawn not in (seen, 2 * seen):
        raise ValueError(
            f"{name} has in_channels {seen} and out_channels {drawn}: it sees an image beside the "
            f"noise, which this pipeline does not give; use {_SEEING.get(seen - drawn, _ITS_OWN)}"
        )


_ITS_OWN = "the pipeline that it was saved by"
_INSTEAD = {
    "added_cond_kwargs.text_embeds": "diffusers' StableDiffusionXLPipeline",
    "added_cond_kwargs.image_embeds": "diffusers' Kandinsky pipelines, or the ones with an IP-Adapter",
    "encoder_hidden_states": "TextToImagePipeline",
    "class_labels": "ImagePipeline (classes of a UNet2DModel), diffusers' StableUnCLIPPipeline",
}
_SEEING = {
    3: "UpsamplePipeline",
    4: "diffusers' StableDiffusionInstructPix2PixPipeline",
    5: "diffusers' StableDiffusionInpaintPipeline",
}
"""What draws with a network of so many further channels."""


def check_mapping(name: str, value: Any) -> None:
    """Raise ValueError where `value` is neither None nor a mapping."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}; allowed: None, or a mapping of names to values")
