"""What the DDPM and DDIM schedulers share: the listed chain, noise levels, x_0 from the network's output."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import (
    check_bool,
    check_device,
    check_int,
    check_number,
    check_same_shape,
    check_tensor,
    shown,
)
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.schedulers.chain import (
    Chain,
    Place,
    abar_table,
    check_levels,
    shaped,
    spaced_timesteps,
)

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


class VariancePreservingMixin:
    """What the DDPM and DDIM schedulers share; goes before the scheduler of diffusers in the bases.

    `config` is read anew at every call, except for what makes the table of abar, which is read once.
    """

    config: Any
    timesteps: Tensor
    num_inference_steps: int | None

    def _set_tables(self) -> None:
        self._check_config()
        self._abar = abar_table(self.config)
        betas = 1 - self._abar / torch.cat([torch.ones(1, dtype=torch.float64), self._abar[:-1]])
        # The public tables of diffusers, which other libraries read; nothing here does.
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), self._abar.float()
        self.custom_timesteps = False
        self.num_inference_steps = None
        self.timesteps = torch.arange(len(self._abar)).flip(0)
        self._chain_of: tuple[Tensor, Chain] | None = None

    def _check_config(self) -> None:
        """Raise ValueError for values of the configuration that no step could work with."""
        config = self.config
        check_int("steps_offset", config.steps_offset, 0)
        for name in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
            check_bool(name, config[name])
        check_number("dynamic_thresholding_ratio", config.dynamic_thresholding_ratio, 0, 1, above=True)
        for name in ("clip_sample_range", "sample_max_value"):
            check_number(name, config[name], 0, 1e6, above=True)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | Tensor | None = None,
    ) -> None:
        """List the timesteps of a run: evenly spaced (`config.timestep_spacing`) or given.

        Args:
            num_inference_steps: How many, from 1 to the timesteps of training.
            device: Where `self.timesteps` is put.
            timesteps: The timesteps themselves, strictly descending, instead of their number.

        Raises:
            ValueError: Both or neither of the two, or a value out of range.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give one of num_inference_steps and timesteps, not both or neither")
        train = len(self._abar)
        if timesteps is None:
            count = _as_int("num_inference_steps", num_inference_steps)
            listed = spaced_timesteps(self.config.timestep_spacing, count, train, self.config.steps_offset)
        else:
            given = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
            if not isinstance(given, Sequence) or isinstance(given, str | bytes):
                raise ValueError(f"timesteps are {shown(timesteps)}; allowed: a list of integers")
            listed = [_as_int("timesteps", t) for t in given]
            falls = all(after < before for before, after in zip(listed, listed[1:], strict=False))
            if not listed or not falls or not 0 <= listed[-1] <= listed[0] < train:
                raise ValueError(
                    f"timesteps are {shown(listed)}; they must be strictly descending, in 0 to {train - 1}"
                )
        device = check_device("device", device)
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(listed)
        self.timesteps = torch.tensor(listed, dtype=torch.int64).to(device)

    @property
    def _chain(self) -> Chain:
        """The chain over `self.timesteps`: all of training's before set_timesteps."""
        if self._chain_of is None or self._chain_of[0] is not self.timesteps:
            listed = self.timesteps.tolist()
            abar = self._abar[listed]
            previous = torch.cat([abar[1:], self._final_abar().reshape(1)])
            chain = Chain(timesteps=tuple(listed), abar=abar, abar_previous=previous)
            self._chain_of = (self.timesteps, chain)
        return self._chain_of[1]

    def _final_abar(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def _place(self, timestep: Tensor | int) -> Place:
        """Where timesteps stand in the list: an int for one, (batch,) for one a sample."""
        chain = self._chain
        wanted = timestep.tolist() if isinstance(timestep, Tensor) else timestep
        try:
            several = isinstance(wanted, list)
            place = torch.tensor([chain.places[t] for t in wanted]) if several else chain.places[wanted]
        except (KeyError, TypeError):
            raise ValueError(
                f"timestep is {shown(timestep)}; it must be one, or (batch,), of the {len(chain.places)} "
                f"timesteps in {type(self).__name__}.timesteps, which begin {list(chain.places)[:5]}"
            ) from None
        if not chain.is_whole:
            check_levels(chain.abar[place], timestep)
        return place

    def previous_timestep(self, timestep: Tensor | int) -> Tensor:
        """The timestep that a step from a listed one arrives at: the next one listed, -1 after the last."""
        following = torch.tensor([*self._chain.timesteps[1:], -1])
        return following[self._place(timestep)]

    def noise_level(self, timestep: Tensor | int) -> NoiseLevel:
        """The noise level at listed timesteps, of timestep's shape: () or (batch,).

        Raises:
            ValueError: A timestep that is not listed; before set_timesteps all of training's are.
        """
        chain, place = self._chain, self._place(timestep)
        return NoiseLevel(alpha=chain.alpha[place], sigma=chain.sigma[place], timestep=timestep)

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the channels of a learned variance where the network has them."""
        for name, value in (("sample", sample), ("model_output", model_output)):
            check_tensor(name, value, ("batch", "channels", "..."))
        channels, given = sample.shape[1], model_output.shape[1]
        if given not in (channels, 2 * channels):
            raise ValueError(
                f"model_output has {given} channels; a sample of {channels} needs {channels}, or "
                f"{2 * channels} with a learned variance"
            )
        if (len(model_output), *model_output.shape[2:]) != (len(sample), *sample.shape[2:]):
            raise ValueError(
                f"model_output has shape {tuple(model_output.shape)} for a sample of {tuple(sample.shape)}; "
                "allowed: its shape, but for the channels of a learned variance"
            )
        return model_output[:, :channels], model_output[:, channels:] if given > channels else None

    def _denoise(self, output: Tensor, place: Place, sample: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 clipped or thresholded as configured, and x_0 before that, of sample's dtype."""
        kind = self.config.prediction_type
        if not isinstance(kind, str) or kind not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {shown(kind)}; allowed: {', '.join(PREDICTION_TYPES)}")
        skip, out = (shaped(c, sample) for c in self._chain.row(kind, place))
        raw = skip * sample + out * output.to(sample.dtype)
        if self.config.thresholding:
            return self._threshold_sample(raw), raw
        if self.config.clip_sample:
            return raw.clamp(-self.config.clip_sample_range, self.config.clip_sample_range), raw
        return raw, raw

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Alpha x_0 + sigma eps at any timesteps of training, () or (batch,); of original_samples' dtype."""
        check_same_shape(
            "noise", noise, "original_samples", check_tensor("original_samples", original_samples)
        )
        return self._mix(timesteps, original_samples, noise, original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction, alpha eps - sigma x_0 with x_0 = `sample`; of sample's dtype."""
        check_same_shape("noise", noise, "sample", check_tensor("sample", sample))
        return self._mix(timesteps, noise, -sample, sample.dtype)

    def _trained(self, timesteps: Any) -> Tensor:
        """Timesteps of training as places in the table."""
        places = timesteps.cpu() if isinstance(timesteps, Tensor) else _tensor_of("timesteps", timesteps)
        whole = not (places.is_complex() or places.dtype == torch.bool) and bool(
            (places == places.long()).all()
        )
        if not whole or places.ndim > 1 or not ((places >= 0) & (places < len(self._abar))).all():
            raise ValueError(
                f"timesteps are {shown(timesteps)}; allowed: 0 to {len(self._abar) - 1}, one or one a sample"
            )
        return places.long()

    def _mix(self, timesteps: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        abar = self._abar[self._trained(timesteps)]
        check_levels(abar, timesteps)
        first, second = at_least_float32(first), at_least_float32(second)
        alpha, sigma = (broadcast(each.sqrt(), first, "timesteps") for each in (abar, 1 - abar))
        return (alpha * first + sigma * second).to(dtype)


def _as_int(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be integers; got {shown(value)}") from None


def _tensor_of(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is {shown(value)}; allowed: an integer, or one a sample") from None
