"""What the DDPM and DDIM schedulers share: the timesteps of a run, their noise levels, x_0 from the output.

A scheduler that is asked for fewer steps than it was trained with runs a shorter chain over the timesteps
that are listed, t_1 < ... < t_n, whose betas are 1 - abar(t_i) / abar(t_{i-1}).

References:
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 4:
        shorter chains.
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891), table 2:
        the spacings of timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that, shown
from guided_diffusers.core.declared import AtLeast, Range, Whole, Within, read
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.posterior import Posterior, posterior
from guided_diffusers.core.prediction import at_least_float32, to_denoised
from guided_diffusers.core.process import VariancePreserving

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
_POSITIVE = Annotated[float, Range(0, 1e6, "(]")]
_CONFIG = {
    "prediction_type": Literal[PREDICTION_TYPES],
    "timestep_spacing": Literal[TIMESTEP_SPACINGS],
    "steps_offset": Whole,
    "clip_sample": bool,
    "clip_sample_range": _POSITIVE,
    "thresholding": bool,
    "dynamic_thresholding_ratio": Annotated[float, Range(0, 1, "(]")],
    "sample_max_value": _POSITIVE,
    "rescale_betas_zero_snr": bool,
}


class _Run(NamedTuple):
    """The timesteps of a run, the one after each, and its steps as far as they were asked for."""

    timesteps: Tensor
    after: dict[int, int]
    steps: dict[int, tuple[NoiseLevel, NoiseLevel, Posterior]]


class VariancePreservingMixin:
    """What the DDPM and DDIM schedulers share; goes before the scheduler of diffusers in the bases.

    `config` is read anew at every call, except for what makes the table of abar, which is read once.
    """

    config: Any
    timesteps: Tensor
    num_inference_steps: int | None
    _threshold_sample: Callable[[Tensor], Tensor]

    def _set_tables(self) -> None:
        for name, kind in _CONFIG.items():
            read(name, self.config[name], kind)
        self.process = VariancePreserving.of_config(self.config)
        abar = self.process.abar
        betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        # The public tables of diffusers, which other libraries read; nothing here does.
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), abar.float()
        self.custom_timesteps = False
        self.num_inference_steps = None
        self.timesteps = torch.arange(len(abar)).flip(0)
        self._run: _Run | None = None

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
        train = len(self.process.abar)
        if timesteps is None:
            count = read("num_inference_steps", num_inference_steps, Annotated[int, Within(1, train)])
            listed = spaced_timesteps(self.config.timestep_spacing, count, train, self.config.steps_offset)
        else:
            given = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
            given = list(given) if isinstance(given, range) else given
            kind = Annotated[list[Annotated[int, Within(0, train - 1)]], AtLeast(1)]
            listed = read("timesteps", given, kind)
            falls = all(after < before for before, after in zip(listed, listed[1:], strict=False))
            check_that(falls, "timesteps", listed, "strictly descending ones")
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(listed)
        self.timesteps = torch.tensor(listed, dtype=torch.int64).to(device)

    def _final_abar(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    @property
    def _listed(self) -> _Run:
        """What is known of `self.timesteps`, which others may set too: all of training's when made."""
        if self._run is None or self._run.timesteps is not self.timesteps:
            listed = self.timesteps.tolist()
            self._run = _Run(self.timesteps, dict(zip(listed, [*listed[1:], -1], strict=True)), {})
        return self._run

    def _following(self, timestep: Tensor | int) -> Tensor:
        """The timestep listed after each of some, -1 after the last."""
        after = self._listed.after
        wanted = timestep.tolist() if isinstance(timestep, Tensor) else timestep
        try:
            return torch.tensor([after[t] for t in wanted] if isinstance(wanted, list) else after[wanted])
        except (KeyError, TypeError):
            raise ValueError(
                f"timestep is {shown(timestep)}; it must be one, or (batch,), of the {len(after)} in "
                f"{type(self).__name__}.timesteps, which begin {list(after)[:5]}"
            ) from None

    def previous_timestep(self, timestep: Tensor | int) -> Tensor:
        """The timestep that a step from a listed one arrives at: the next one listed, -1 after the last."""
        return self._following(timestep)

    def noise_level(self, timestep: Tensor | int) -> NoiseLevel:
        """The noise level at listed timesteps, of timestep's shape: `()` or `(batch,)`.

        Raises:
            ValueError: A timestep that is not listed; before set_timesteps all of training's are.
        """
        self._following(timestep)
        return self.process.at(timestep)

    def next_noise_level(self, index: int) -> NoiseLevel:
        """The level that step `index` arrives at; its timestep is the next listed, None after the last."""
        return self._step_from(self.timesteps[index])[1]

    def _step_from(self, timestep: Tensor | int) -> tuple[NoiseLevel, NoiseLevel, Posterior]:
        """The level at listed timesteps, where a step from them arrives, and the way between."""
        several = isinstance(timestep, Tensor) and timestep.ndim > 0
        if not several and (known := self._listed.steps.get(int(timestep))) is not None:
            return known
        following, level = self._following(timestep), self.process.at(timestep)
        abar = torch.where(following < 0, self._final_abar(), self.process.abar[following.clamp_min(0)])
        told = None if several or following < 0 else following
        next_level = NoiseLevel(alpha=abar.sqrt(), sigma=(1 - abar).sqrt(), timestep=told)
        step = level, next_level, posterior(level, next_level)
        if not several:
            self._listed.steps[int(timestep)] = step
        return step

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the channels of a learned variance where the network has them."""
        channels, given = sample.shape[1], model_output.shape[1]
        fits = given in (channels, 2 * channels) and model_output[:, :channels].shape == sample.shape
        allowed = f"the sample's shape, {tuple(sample.shape)}, or {2 * channels} channels (learned variance)"
        check_that(fits, "model_output", model_output, allowed)
        return model_output[:, :channels], model_output[:, channels:] if given > channels else None

    def _denoise(self, output: Tensor, sample: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """x_0 clipped or thresholded as configured, and x_0 before that, of sample's dtype."""
        raw = to_denoised(output, sample, level, self.config.prediction_type)
        if self.config.thresholding:
            return self._threshold_sample(raw), raw
        if self.config.clip_sample:
            return raw.clamp(-self.config.clip_sample_range, self.config.clip_sample_range), raw
        return raw, raw

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at timesteps of training, `()` or `(batch,)`; of original_samples' dtype."""
        return self._mix(timesteps, original_samples, noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction, alpha eps - sigma x_0 with x_0 = `sample`; of sample's dtype."""
        return self._mix(timesteps, noise, -sample).to(sample.dtype)

    def _mix(self, timesteps: Tensor, first: Tensor, second: Tensor) -> Tensor:
        level, first, second = self.process.at(timesteps), at_least_float32(first), at_least_float32(second)
        return broadcast(level.alpha, first) * first + broadcast(level.sigma, first) * second


def spaced_timesteps(spacing: str, count: int, train: int, offset: int) -> list[int]:
    """`count` of `train` timesteps, descending, in one of the spacings of Lin et al., table 2.

    Raises:
        ValueError: An offset that leads out of the table.
    """
    # Lin et al., table 2
    if spacing == "linspace":
        ascending = torch.linspace(0, train - 1, count, dtype=torch.float64).round()
    elif spacing == "leading":
        ascending = torch.arange(count) * (train // count) + offset
    else:
        ascending = (train - torch.arange(count, dtype=torch.float64).flip(0) * (train / count)).round() - 1
    allowed = f"0 with {count} steps, which then end at {train - 1} or below"
    check_that(ascending[-1] < train, "steps_offset", offset, allowed)
    return ascending.long().flip(0).tolist()
