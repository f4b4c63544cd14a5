"""The standardised latents of any autoencoder of images, ours or of diffusers.

A network of latent diffusion sees standardised latents z. VariationalAutoencoder speaks them itself. The
autoencoders of diffusers speak raw ones, and their configuration says how their pipelines go from one to the
other; as StableDiffusionPipeline, StableDiffusionXLPipeline and StableDiffusion3Pipeline do,

    raw = z latents_std / scaling_factor + latents_mean        raw = z / scaling_factor + shift_factor

which is a mean and a deviation a channel. This is the one place that knows it: whoever encodes or decodes
with an autoencoder that may be any goes through here, and training loads an AutoencoderKL as a
VariationalAutoencoder, whose configuration then holds the two.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_number, check_that
from guided_diffusers.core.finite import check_output
from guided_diffusers.models.standardised import StandardisedLatentsMixin, check_statistics, per_channel

IMAGE_AUTOENCODERS = (
    "VariationalAutoencoder",
    "AutoencoderKL",
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderTiny",
    "ConsistencyDecoderVAE",
    "VQModel",
)
"""The classes whose latents are maps (batch, channels, h, w) with a scale for all, or one a channel."""

_WITHOUT_NOISE = tuple(name for name in IMAGE_AUTOENCODERS if name != "ConsistencyDecoderVAE")

PIXELS_AT_ONCE = 2**16
"""How many pixels are decoded at a time, if more than one image: those of one of 256 x 256."""

Statistics = tuple[Sequence[float] | None, Sequence[float] | None]


def check_autoencoder(vae: Any, name: str = "vae") -> None:
    """Raise ValueError for an autoencoder of diffusers of another kind, such as of video; None passes."""
    kind = type(vae)
    if kind.__module__.startswith("diffusers.") and kind.__name__ not in IMAGE_AUTOENCODERS:
        raise ValueError(told_class(name, kind.__name__))


def told_class(name: str, kind: Any) -> str:
    """The sentence that refuses an autoencoder's class."""
    allowed = ", ".join(IMAGE_AUTOENCODERS)
    return f"{name} is of class {kind}; allowed: an autoencoder whose latents are maps of images, {allowed}"


def raw_statistics(config: Mapping[str, Any]) -> Statistics:
    """Mean and deviation of the raw latents, a number a channel, as a configuration's scale and shift say.

    Args:
        config: Of an autoencoder; of the four names above any may be missing or None.

    Returns:
        Both None where raw latents are the standardised ones.

    Raises:
        ValueError: A scale that is not positive, a shift that is not finite, statistics that are not one
            number a channel, or both a shift and a mean.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scaling, shift = config.get("scaling_factor"), config.get("shift_factor")
    scaling = 1.0 if scaling is None else check_number("scaling_factor", scaling, 0, above=True)
    shift = 0.0 if shift is None else check_number("shift_factor", shift)
    channels = latent_channels(config) or 1
    check_statistics("latents_mean", mean, channels)
    check_statistics("latents_std", std, channels, positive=True)
    if scaling == 1 and shift == 0:
        return mean, std
    alone = shift == 0 or (mean is None and std is None)
    check_that(alone, "shift_factor", shift, "0 beside latents_mean or latents_std")
    mean = [shift] * channels if mean is None else mean
    return mean, [deviation / scaling for deviation in ([1.0] * channels if std is None else std)]


def latent_channels(config: Mapping[str, Any]) -> int | None:
    """The channels of an autoencoder's latents, where its configuration says them."""
    return config.get("vq_embed_dim") or config.get("latent_channels")


def image_channels(config: Mapping[str, Any]) -> int:
    """The channels of the images that an autoencoder encodes."""
    return config.get("in_channels") or config["encoder_in_channels"]


def spatial_factor(vae: Any) -> int:
    """How many pixels of an image's side one position of its latent has."""
    blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """The shape of an image's latent, (channels, h, w).

    Raises:
        ValueError: Sides that do not divide evenly.
    """
    if isinstance(vae, StandardisedLatentsMixin):
        return vae.latent_shape(height, width)
    return (latent_channels(vae.config), *shrunk(height, width, spatial_factor(vae)))


def sample_shape(vae: Any, channels: int, side: int) -> tuple[int, int, int]:
    """The shape of what a denoiser draws of square images: of their latent, or without a vae their own.

    Args:
        vae: An autoencoder; None for none.
        channels: Of an image.
        side: Of an image, in pixels.

    Returns:
        (channels, h, w).

    Raises:
        ValueError: A side that does not divide evenly.
    """
    return (channels, side, side) if vae is None else latent_shape(vae, side, side)


def shrunk(height: int, width: int, factor: int) -> tuple[int, int]:
    """The sides divided by a factor; ValueError where they do not divide evenly."""
    fits = height % factor == width % factor == 0
    check_that(fits, "the images' size", (height, width), f"multiples of {factor}, by which they shrink")
    return height // factor, width // factor


def encode(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the standardised latents' posterior.

    Args:
        vae: Any of `IMAGE_AUTOENCODERS`; one without a posterior has the deviation 0.
        images: (batch, channels, height, width) in [-1, 1], on its device.

    Returns:
        Two tensors (batch, latent_channels, h, w).

    Raises:
        NonFiniteError: A latent that is not finite.
    """
    with full_precision(vae):
        encoded = vae.encode(images.to(vae.dtype))[0]
    point = isinstance(encoded, Tensor)
    check_output(encoded if point else encoded.mean, "encoded latent", vae)
    mean, deviation = (encoded, torch.zeros_like(encoded)) if point else (encoded.mean, encoded.std)
    if isinstance(vae, StandardisedLatentsMixin):
        return mean, deviation
    m, s = per_channel(*raw_statistics(vae.config), mean)
    return ((mean - m) / s).to(mean.dtype), (deviation / s).to(mean.dtype)


def decode(vae: Any, latents: Tensor, generator: Any = None) -> Tensor:
    """Images (batch, channels, height, width) in [-1, 1] of standardised latents.

    Where nobody asks for gradients, at most `PIXELS_AT_ONCE` are decoded at a time: a decoder holds several
    times more for each image than a denoiser does, and knows nothing of the other images of a batch.

    Args:
        vae: Any of `IMAGE_AUTOENCODERS`, or another network with such a `decode` and configuration.
        latents: (batch, latent_channels, h, w), on its device.
        generator: Of an autoencoder that draws when it decodes (ConsistencyDecoderVAE): one, or one an image.

    Raises:
        NonFiniteError: A picture that is not finite.
    """
    if not isinstance(vae, StandardisedLatentsMixin):
        m, s = per_channel(*raw_statistics(vae.config), latents)
        latents = latents * s + m
    takes = "generator" in inspect.signature(vae.decode).parameters
    several, may_draw = isinstance(generator, Sequence), takes and type(vae).__name__ not in _WITHOUT_NOISE
    whole = torch.is_grad_enabled() or (may_draw and not several)
    count = len(latents) if whole else _images_at_once(vae, latents)
    parts = []
    with full_precision(vae):
        for part in (slice(start, start + count) for start in range(0, len(latents), count)):
            own = {"generator": generator[part] if several else generator} if takes else {}
            parts.append(vae.decode(latents[part].to(vae.dtype), **own).sample)
    return check_output(parts[0] if len(parts) == 1 else torch.cat(parts), "decoded picture", vae)


def _images_at_once(vae: Any, latents: Tensor) -> int:
    """How many images are decoded at a time."""
    config, (height, width) = vae.config, latents.shape[2:]
    if config.get("latent") == "vector":
        side = config["sample_size"]
        pixels = side * side if isinstance(side, int) else math.prod(side)
    else:
        pixels = height * width * spatial_factor(vae) ** 2
    return max(PIXELS_AT_ONCE // pixels, 1)


@contextmanager
def full_precision(vae: Any) -> Iterator[None]:
    """A block in which a float16 autoencoder that asks for it by `force_upcast` is in float32.

    As StableDiffusionXLPipeline does: inside, such a network's activations leave the range of float16.
    """
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    try:
        if upcast:
            vae.to(dtype=torch.float32)
        yield
    finally:
        if upcast:
            vae.to(dtype=torch.float16)
