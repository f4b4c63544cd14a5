"""What pipelines without a prompt do with a `UNet2DModel` and its autoencoder: checks, shapes, images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from guided_diffusers.models import latents
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.drawing import sample_sides


def check_parts(unet: Any, vae: Any) -> None:
    """Raise ValueError where the denoiser has to be told more than a class, or does not fit its vae."""
    check_vae(unet, vae)
    inputs.check_unet(unet, ("class_labels",))
    kind = getattr(unet, "config", {}).get("class_embed_type")
    if kind is not None:
        raise ValueError(
            f"unet has class_embed_type {kind!r}; allowed: None, with num_class_embeds, because this "
            "pipeline tells it the index of a class"
        )


def check_channels(name: str, seen: int | None, unet: Any) -> None:
    """Raise ValueError where a network sees samples of other channels than the denoiser's."""
    channels = unet.config.in_channels
    if seen is not None and seen != channels:
        raise ValueError(
            f"{name} has in_channels {seen}; allowed: {channels}, the channels of the denoiser's sample"
        )


def sample_shape(unet: Any, count: int) -> tuple[int, ...]:
    """The shape of so many samples, `(count, channels, height, width)`."""
    return (count, unet.config.in_channels, *sample_sides(unet))


def pictures(vae: Any, shape: Sequence[int]) -> tuple[int, int, int]:
    """How many pictures samples of a shape are, and their sides in pixels."""
    factor = 1 if vae is None else latents.spatial_factor(vae)
    return shape[0], factor * shape[2], factor * shape[3]


def images_of(
    vae: Any, sample: Tensor, output_type: str, generator: Any = None, sides: Sequence[int] | None = None
) -> Any:
    """Samples decoded, as PIL images, arrays or tensors; "latent" leaves them as they are.

    Args:
        vae: None for pixels.
        sample: `(batch, channels, height, width)`.
        output_type: As of pipelines' calls.
        generator: Of a decoder that draws.
        sides: Height and width of the images, where a sample was padded below and on the right.
    """
    if output_type == "latent":
        return sample
    if vae is not None:
        sample = latents.decode(vae, sample, generator)
    if sides is not None:
        sample = sample[..., : sides[0], : sides[1]]
    return VaeImageProcessor().postprocess(sample, output_type)
