"""Ancestral sampling, with its pieces in the open: posterior, reverse step, every variance, Algorithm 1.

A reverse step draws x_previous ~ N(mu, Sigma), where mu is the mean of the posterior q(x_previous | x_t,
x_0) at the predicted x_0. The types of Sigma, with beta the forward step's variance and btilde the
posterior's:

| variance_type | Sigma |
|---|---|
| fixed_small | btilde, 0 at the clean end |
| fixed_small_log | exp(log btilde), the logarithm limited at the clean end to that of the step before |
| fixed_large, fixed_large_log | beta; at the clean end btilde of the step before |
| learned | exp(o), o the network's second half of channels |
| learned_range | exp(f log beta + (1 - f) log btilde), f = (o + 1) / 2 |

A classifier's gradient g = grad log p(y | x_t) moves the mean: N(mu + Sigma g, Sigma), with any of these.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equations 6, 7 and 11.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), equation 15.
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.declared import read
from guided_diffusers.core.noise import broadcast
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.schedulers.variance_preserving import VariancePreservingMixin

LARGE = ("fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", *LARGE, *LEARNED)


class GuidedDDPMScheduler(VariancePreservingMixin, DDPMScheduler):
    """DDPMScheduler with float64 tables, all variances of the papers, and `guidance_gradient` in `step`.

    It takes DDPMScheduler's configuration and goes wherever that goes. Differences from it: the chain is
    the one of the listed timesteps, whose last step draws no noise whatever its timestep; `learned` means
    the log-variance, as in the papers' code; an x_0 is never read from epsilon at zero SNR (ValueError).
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        read("variance_type", variance_type, Literal[VARIANCE_TYPES])
        self._set_tables()
        self.init_noise_sigma = 1.0
        self.one = torch.tensor(1.0)
        self.variance_type = variance_type

    def posterior(self, x0: Tensor, sample: Tensor, timestep: Tensor | int) -> tuple[Tensor, Tensor]:
        """The posterior q(x_previous | x_t, x_0) of the chain over the listed timesteps.

        Args:
            x0: `(batch, ...)`.
            sample: x_t, of x0's shape.
            timestep: A listed timestep, or one a sample, `(batch,)`.

        Returns:
            (mean, variance) of x0's shape, at least float32; at the last listed timestep (x0, 0).
        """
        sample, (_, _, between) = at_least_float32(sample), self._step_from(timestep)
        mean = between.mean(x0.to(sample.dtype), sample)
        return mean, _filled(broadcast(between.variance, sample), sample)

    def log_variance(self, timestep: Tensor | int, predicted: Tensor | None = None) -> Tensor:
        """The log-variance of the reverse step, limited at the clean end where that would be minus infinity.

        Args:
            timestep: A listed timestep, or `(batch,)` of them.
            predicted: The network's channels for a learned variance, `(batch, channels, ...)`. Without them a
                learned type gives its lower limit, the posterior's.

        Returns:
            Float64 of timestep's shape, on the CPU as the tables are; or of predicted's shape (at least
            float32), where that is.

        Raises:
            ValueError: An unknown `config.variance_type`, or a timestep that is not listed.
        """
        kind = self.config.variance_type
        if kind in LEARNED and predicted is not None:
            return self._learned(predicted, timestep)
        return self._limited(timestep, large=kind in LARGE).log()

    def reverse(
        self, model_output: Tensor, timestep: Tensor | int, sample: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reverse step p(x_previous | x_t) before guidance and noise.

        Args:
            model_output: `(batch, channels, ...)`, with 2 channels' worth where the variance is learned.
            timestep: A listed timestep, or one a sample, `(batch,)`.
            sample: x_t, `(batch, channels, ...)`.

        Returns:
            (mean, variance, x0) of sample's shape, at least float32; x0 clipped or thresholded as configured.

        Raises:
            ValueError: An unlisted timestep, a wrong number of channels, an unknown variance or prediction
                type, or epsilon prediction at zero SNR.
        """
        output, predicted = self._split(model_output, sample)
        sample, (level, _, between) = at_least_float32(sample), self._step_from(timestep)
        x0, _ = self._denoise(output, sample, level)
        return between.mean(x0, sample), _filled(self._variance(predicted, timestep, sample), sample), x0

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        guidance_gradient: Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw x_previous ~ N(mu + Sigma g, Sigma) (Dhariwal and Nichol, algorithm 1).

        Args:
            model_output: `(batch, channels, ...)`, with 2 channels' worth where the variance is learned.
            timestep: A listed timestep, or one a sample, `(batch,)`.
            sample: x_t, `(batch, channels, ...)`.
            generator: Source of the noise; a list has one generator a sample. The last step draws none.
            return_dict: An output object and not a tuple.
            guidance_gradient: g = s grad_x log p(y | x_t) of sample's shape, its scale s included;
                None for 0.

        Returns:
            `prev_sample`, and `pred_original_sample`, the x_0 before guidance; of the arguments' dtype.

        Raises:
            ValueError: As `reverse`.
        """
        output, predicted = self._split(model_output, sample)
        dtype = torch.promote_types(output.dtype, sample.dtype)
        sample, (level, _, between) = at_least_float32(sample), self._step_from(timestep)
        x0, _ = self._denoise(output, sample, level)
        drawn, noisy = between.mean(x0, sample), self._following(timestep) >= 0
        if guidance_gradient is not None or noisy.any():
            variance = self._variance(predicted, timestep, sample)
        # Dhariwal and Nichol, algorithm 1: N(mu + Sigma g, Sigma)
        if guidance_gradient is not None:
            drawn = drawn + variance * guidance_gradient.to(drawn.dtype)
        if noisy.any():
            noise = randn_tensor(output.shape, as_generators(generator), output.device, output.dtype)
            drawn = drawn + broadcast(noisy, drawn) * variance**0.5 * noise
        result = drawn.to(dtype), x0.to(dtype)
        return DDPMSchedulerOutput(*result) if return_dict else result

    def _limited(self, timestep: Tensor | int, large: bool) -> Tensor:
        """beta or the posterior's variance; at the clean end the posterior's of the step before.

        A chain of one step has no step before: there it is beta.
        """
        between, listed = self._step_from(timestep)[2], self.timesteps
        before = self._step_from(int(listed[-2:][0]))[2]
        at_the_end = before.variance if len(listed) > 1 else before.forward
        value = between.forward if large else between.variance
        return torch.where(self._following(timestep) < 0, at_the_end, value)

    def _variance(self, predicted: Tensor | None, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """The variance of a reverse step, such that it multiplies a sample."""
        kind = self.config.variance_type
        if kind == "fixed_small":
            return broadcast(self._step_from(timestep)[2].variance, sample)
        if kind not in LEARNED:
            return broadcast(self._limited(timestep, large=kind in LARGE), sample)
        if predicted is None:
            channels = sample.shape[1]
            raise ValueError(
                f"variance_type is {kind!r}, which needs {2 * channels} channels of model_output; it has "
                f"{channels}: use a fixed variance_type with this network"
            )
        return self._learned(predicted, timestep).exp()

    def _learned(self, predicted: Tensor, timestep: Tensor | int) -> Tensor:
        """The logarithm of a learned variance."""
        predicted = at_least_float32(predicted)
        if self.config.variance_type == "learned":
            return predicted
        low = broadcast(self._limited(timestep, large=False).log(), predicted)
        high = broadcast(self._step_from(timestep)[2].forward.log(), predicted)
        # Nichol and Dhariwal, equation 15
        return low + (predicted + 1) / 2 * (high - low)

    def _get_variance(
        self, t: Tensor | int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """DDPMScheduler's name for the variance (never its logarithm or root) of the step from t."""
        if (variance_type or self.config.variance_type) == "fixed_small":
            return self._step_from(t)[2].variance
        return self.log_variance(t, predicted_variance).exp()


def _filled(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device).expand_as(like)
