"""Standardised latents: the mean and deviation of each raw channel, kept in a model's configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that


class StandardisedLatentsMixin:
    """For a ConfigMixin with `latent_channels`, `latents_mean` and `latents_std` (None: 0 and 1)."""

    def set_latent_statistics(
        self, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None
    ) -> None:
        """Sets the raw latents' mean and deviation, one number a channel; the configuration keeps them.

        None is 0 or 1 in every channel.
        """
        channels = self.config.latent_channels
        mean, std = [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std
        statistics = {"latents_mean": mean, "latents_std": std}
        values = {k: torch.as_tensor(v, dtype=torch.float64).tolist() for k, v in statistics.items()}
        check_statistics("latents_mean", values["latents_mean"], channels)
        check_statistics("latents_std", values["latents_std"], channels, positive=True)
        # A copy made from this configuration takes its defaults for the names listed here.
        defaults = [k for k in self.config.get("_use_default_values", []) if k not in values]
        self.register_to_config(**values, _use_default_values=defaults)

    @property
    def standardises(self) -> bool:
        """Whether raw and standardised latents differ."""
        return self.config.latents_mean is not None or self.config.latents_std is not None

    def latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (1, latent_channels, 1, 1), on the device of `like`, in at least float32."""
        return per_channel(self.config.latents_mean, self.config.latents_std, like)

    def standardise(self, latents: Tensor) -> Tensor:
        """What `decode` takes, of raw latents (batch, latent_channels, h, w) such as the prior's."""
        if not self.standardises:
            return latents
        mean, std = self.latent_statistics(latents)
        return ((latents - mean) / std).to(latents.dtype)

    def destandardise(self, latents: Tensor) -> Tensor:
        """Raw latents of standardised ones; undoes `standardise`."""
        if not self.standardises:
            return latents
        mean, std = self.latent_statistics(latents)
        return (latents * std + mean).to(latents.dtype)


def per_channel(
    mean: Sequence[float] | None, std: Sequence[float] | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (None: 0) and deviation (None: 1), (1, channels or 1, 1, 1), as `like` but in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # in half precision, 1 / 0.18215 is off by 2e-3
    values = ([default] if each is None else each for each, default in ((mean, 0.0), (std, 1.0)))
    m, s = (torch.tensor(each, dtype=dtype, device=like.device).view(1, -1, 1, 1) for each in values)
    return m, s


def check_statistics(
    name: str, values: Sequence[float] | None, channels: int, positive: bool = False
) -> None:
    """Raise ValueError where `values` are not one finite (and positive) number a channel."""
    if values is None:
        return
    given = torch.as_tensor(values, dtype=torch.float64)
    fits = given.shape == (channels,) and given.isfinite().all() and (not positive or (given > 0).all())
    kind = "finite numbers above 0" if positive else "finite numbers"
    check_that(fits, name, values, f"{channels} {kind}, one a latent channel")
