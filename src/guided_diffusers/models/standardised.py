"""Standardised latents: the mean and deviation of each raw channel, kept in a model's configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class StandardisedLatentsMixin:
    """For a ConfigMixin with `latent_channels`, `latents_mean` and `latents_std` (None: 0 and 1)."""

    def set_latent_statistics(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Sets the raw latents' mean and deviation, one number a channel; the configuration keeps them."""
        statistics = {"latents_mean": mean, "latents_std": std}
        values = {k: torch.as_tensor(v, dtype=torch.float64).tolist() for k, v in statistics.items()}
        check_statistics("latents_mean", values["latents_mean"], self.config.latent_channels)
        check_statistics("latents_std", values["latents_std"], self.config.latent_channels, positive=True)
        # A copy made from this configuration takes its defaults for the names listed here.
        defaults = [k for k in self.config.get("_use_default_values", []) if k not in values]
        self.register_to_config(**values, _use_default_values=defaults)

    @property
    def standardises(self) -> bool:
        """Whether raw and standardised latents differ."""
        return self.config.latents_mean is not None or self.config.latents_std is not None

    def latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (1, latent_channels, 1, 1), with the dtype and device of `like`."""

        def per_channel(values: Sequence[float] | None, default: float) -> Tensor:
            values = [default] * self.config.latent_channels if values is None else values
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

        return per_channel(self.config.latents_mean, 0.0), per_channel(self.config.latents_std, 1.0)

    def standardise(self, latents: Tensor) -> Tensor:
        """What `decode` takes, of raw latents (batch, latent_channels, h, w) such as the prior's."""
        if not self.standardises:
            return latents
        mean, std = self.latent_statistics(latents)
        return (latents - mean) / std

    def destandardise(self, latents: Tensor) -> Tensor:
        """Raw latents of standardised ones; undoes `standardise`."""
        if not self.standardises:
            return latents
        mean, std = self.latent_statistics(latents)
        return latents * std + mean


def check_statistics(
    name: str, values: Sequence[float] | None, channels: int, positive: bool = False
) -> None:
    """Raise ValueError where `values` are not one finite (and positive) number a channel."""
    if values is None:
        return
    given = torch.as_tensor(values, dtype=torch.float64)
    if given.shape != (channels,) or not bool(given.isfinite().all()):
        raise ValueError(f"{name} must be {channels} finite numbers, one a latent channel; got {values}.")
    if positive and not bool((given > 0).all()):
        raise ValueError(f"{name} must be positive; got {values}.")
