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

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.noise_level import broadcast
from guided_diffusers.prediction import at_least_float32
from guided_diffusers.schedulers.variance_preserving import Chain, VariancePreservingMixin

LEARNED = ("learned", "learned_range")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED)


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
        self._set_tables()
        self.init_noise_sigma = 1.0
        self.one = torch.tensor(1.0)
        self.variance_type = variance_type

    def posterior(self, x0: Tensor, sample: Tensor, timestep: Tensor | int) -> tuple[Tensor, Tensor]:
        """The posterior q(x_previous | x_t, x_0) of the chain over the listed timesteps.

        Args:
            x0: (batch, ...).
            sample: x_t, of x0's shape.
            timestep: A listed timestep, or one a sample, (batch,).

        Returns:
            (mean, variance) of x0's shape, at least float32; at the last listed timestep (x0, 0).
        """
        chain, place = self._chain, self._place(timestep)
        sample = at_least_float32(sample)
        abar, previous, beta = chain.abar[place], chain.abar_previous[place], chain.beta[place]
        of_x0 = previous.sqrt() * beta / (1 - abar)
        of_sample = (1 - beta).sqrt() * (1 - previous) / (1 - abar)
        mean = broadcast(of_x0, sample) * x0.to(sample.dtype) + broadcast(of_sample, sample) * sample
        return mean, _expand(chain.posterior_variance[place], sample)

    def log_variance(self, timestep: Tensor | int, predicted: Tensor | None = None) -> Tensor:
        """The log-variance of the reverse step, limited at the clean end where that would be minus infinity.

        Args:
            timestep: A listed timestep, or (batch,) of them.
            predicted: The network's channels for a learned variance, (batch, channels, ...). Without them a
                learned type gives its lower limit, the posterior's.

        Returns:
            Float64 of timestep's shape, or of predicted's shape (at least float32).

        Raises:
            ValueError: An unknown `config.variance_type`, or a timestep that is not listed.
        """
        chain, place, kind = self._chain, self._place(timestep), self._known_variance_type()
        if kind not in LEARNED:
            large = kind in ("fixed_large", "fixed_large_log")
            return (_large_variance(chain).log() if large else chain.log_posterior_variance)[place]
        if predicted is None:
            return chain.log_posterior_variance[place]
        predicted = at_least_float32(predicted)
        if kind == "learned":
            return predicted
        low = broadcast(chain.log_posterior_variance[place], predicted)
        high = broadcast(chain.beta[place].log(), predicted)
        return low + (predicted + 1) / 2 * (high - low)

    def reverse(
        self, model_output: Tensor, timestep: Tensor | int, sample: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reverse step p(x_previous | x_t) before guidance and noise.

        Args:
            model_output: (batch, channels, ...), with 2 channels' worth where the variance is learned.
            timestep: A listed timestep, or one a sample, (batch,).
            sample: x_t, (batch, channels, ...).

        Returns:
            (mean, variance, x0) of sample's shape, at least float32; x0 clipped or thresholded as configured.

        Raises:
            ValueError: An unlisted timestep, a wrong number of channels, an unknown variance or prediction
                type, or epsilon prediction at zero SNR.
        """
        output, predicted = self._split(model_output, sample)
        x0, _ = self._denoise(output, timestep, sample)
        mean, _ = self.posterior(x0, sample, timestep)
        return mean, self._variance(timestep, predicted, mean), x0

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
            model_output: (batch, channels, ...), with 2 channels' worth where the variance is learned.
            timestep: A listed timestep, or one a sample, (batch,).
            sample: x_t, (batch, channels, ...).
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
        x0, _ = self._denoise(output, timestep, sample)
        drawn, _ = self.posterior(x0, sample, timestep)
        noisy = self._place(timestep) < len(self._chain.timesteps) - 1
        if guidance_gradient is not None or noisy.any():
            variance = self._variance(timestep, predicted, drawn)
        if guidance_gradient is not None:
            drawn = drawn + variance * guidance_gradient.to(drawn.dtype)
        if noisy.any():
            noise = randn_tensor(output.shape, generator=generator, device=output.device, dtype=output.dtype)
            drawn = drawn + broadcast(noisy, drawn) * variance.sqrt() * noise
        result = drawn.to(dtype), x0.to(dtype)
        return DDPMSchedulerOutput(*result) if return_dict else result

    def _known_variance_type(self) -> str:
        kind = self.config.variance_type
        if kind not in VARIANCE_TYPES:
            raise ValueError(f"variance_type is {kind!r}; allowed: {', '.join(VARIANCE_TYPES)}")
        return kind

    def _variance(self, timestep: Tensor | int, predicted: Tensor | None, like: Tensor) -> Tensor:
        """The variance of a reverse step, of `like`'s shape and dtype."""
        kind = self._known_variance_type()
        if kind in LEARNED:
            if predicted is None:
                raise ValueError(
                    f"variance_type is {kind!r}, which needs {2 * like.shape[1]} channels of model_output; "
                    f"it has {like.shape[1]}: use a fixed variance_type with this network"
                )
            return self.log_variance(timestep, predicted).exp()
        if (
            kind == "fixed_small"
        ):  # the one that is exactly 0 at the clean end, where its logarithm is limited
            return _expand(self._chain.posterior_variance[self._place(timestep)], like)
        return _expand(self.log_variance(timestep).exp(), like)

    def _get_variance(
        self, t: Tensor | int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """DDPMScheduler's name for the variance (never its logarithm or root) of the step from t."""
        if variance_type not in (None, self.config.variance_type):
            raise ValueError(f"variance_type is {variance_type!r}; set it in the configuration instead")
        if self.config.variance_type == "fixed_small":
            return self._chain.posterior_variance[self._place(t)]
        return self.log_variance(t, predicted_variance).exp()


def _large_variance(chain: Chain) -> Tensor:
    return torch.cat([chain.beta[:-1], chain.log_posterior_variance[-1:].exp()])


def _expand(value: Tensor, like: Tensor) -> Tensor:
    return broadcast(value, like).to(like.device).expand_as(like)
