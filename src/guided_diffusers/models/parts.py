"""Whether parts that are put together fit: compared by their configurations, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guided_diffusers.models.latents import check_autoencoder, latent_channels


def check_channels(name: str, seen: int | None, other: str, channels: int | None) -> None:
    """Raise ValueError where a part takes other channels than another gives; both are named."""
    if None not in (seen, channels):
        _check_equal(f"{name} takes", f"{seen} channels", f"{other} has", f"{channels} channels")


def check_vae(unet: Any, vae: Any) -> None:
    """Raise ValueError where an autoencoder is of another kind than images, or of other channels."""
    check_autoencoder(vae)
    if vae is not None and unet is not None:
        check_channels(
            "unet", unet.config.get("in_channels"), "the latent of vae", latent_channels(vae.config)
        )


def check_text_width(unet: Any, text_encoder: Any) -> None:
    """Raise ValueError where a denoiser attends to embeddings of another width than a text encoder's."""
    if unet is None or text_encoder is None:
        return
    config, width = unet.config, getattr(text_encoder.config, "hidden_size", None)
    projected = config.get("encoder_hid_dim")
    expected = config.get("cross_attention_dim") if projected is None else projected
    name = "cross_attention_dim" if projected is None else "encoder_hid_dim"
    if isinstance(expected, int) and isinstance(width, int):
        _check_equal(f"unet has {name}", expected, "text_encoder hidden_size", width)


def check_weak(unet: Any, weak: Any) -> None:
    """Raise ValueError where a weak network is not of the denoiser's channels and condition."""
    for name in ("in_channels", "cross_attention_dim"):
        if None not in (unet, weak):
            _check_equal(f"weak_unet has {name}", weak.config.get(name), "unet", unet.config.get(name))


def check_sample(network: Any, name: str, shape: Sequence[int], of: str) -> None:
    """Raise ValueError where a network to be trained is not for samples (channels, height, width).

    Args:
        network: With `in_channels` and, where it has one, a `sample_size` in its configuration.
        name: The network's.
        shape: Of the sample.
        of: What the sample is.
    """
    check_channels(name, network.config.get("in_channels"), of, shape[0])
    size = network.config.get("sample_size")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None:
        own, given = "x".join(map(str, sides)), "x".join(map(str, shape[1:]))
        _check_equal(f"{name} has sample_size", own, f"{of} has", given)


def _check_equal(name: str, value: Any, other: str, wanted: Any) -> None:
    if value != wanted:
        raise ValueError(f"{name} {value} and {other} {wanted}; allowed: the same")
