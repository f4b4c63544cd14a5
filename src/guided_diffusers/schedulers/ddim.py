"""Denoising diffusion implicit models: x_previous from x_0 and epsilon, with as much fresh noise as eta says.

    x_previous = sqrt(abar') x_0 + sqrt(1 - abar' - s^2) eps + s z,    s = eta sqrt(btilde),    z ~ N(0, I),

where abar' belongs to the next listed timestep and btilde is the posterior variance of that step: eta = 0 is
deterministic, and eta = 1 is ancestral sampling with the small variance.

References:
    Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502), equations 12 and 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.declared import Share, read
from guided_diffusers.core.noise import broadcast
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.schedulers.variance_preserving import VariancePreservingMixin


class GuidedDDIMScheduler(VariancePreservingMixin, DDIMScheduler):
    """DDIMScheduler with float64 tables and custom timesteps; a step arrives at the next timestep listed.

    It takes DDIMScheduler's configuration and goes wherever that goes. Differences from it: DDIMScheduler
    goes down by num_train_timesteps // num_inference_steps whatever is listed, which is wrong for
    `linspace` spacing and for steps that do not divide; `set_timesteps` takes `timesteps`; the channels of
    a learned variance are dropped; an x_0 is never read from epsilon at zero SNR (ValueError).
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        read("set_alpha_to_one", set_alpha_to_one, bool)
        self._set_tables()
        self.init_noise_sigma = 1.0
        self.final_alpha_cumprod = self._final_abar().float()

    def _final_abar(self) -> Tensor:
        """What the last step arrives at: the clean end, or the first noise level of training."""
        return super()._final_abar() if self.config.set_alpha_to_one else self.process.abar[0]

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Go from a listed timestep to the next one listed (equation 12).

        Args:
            model_output: `(batch, channels, ...)`; the channels of a learned variance, if any, are dropped.
            timestep: A listed timestep, or one a sample, `(batch,)`.
            sample: x_t, `(batch, channels, ...)`.
            eta: Share of fresh noise, in [0, 1].
            use_clipped_model_output: Read epsilon from the clipped x_0 and not from the network's.
            generator: Source of the noise if eta > 0; a list has one generator a sample.
            variance_noise: The noise itself, of sample's shape, instead of a generator.
            return_dict: An output object and not a tuple.

        Returns:
            `prev_sample` and `pred_original_sample`, of the arguments' dtype.

        Raises:
            ValueError: An unlisted timestep, a wrong number of channels, an unknown prediction type, epsilon
                prediction at zero SNR, eta outside [0, 1], or both a generator and variance_noise with eta
                > 0.
        """
        eta = read("eta", eta, Share)
        output, _ = self._split(model_output, sample)
        dtype = torch.promote_types(output.dtype, sample.dtype)
        sample, (level, next_level, between) = at_least_float32(sample), self._step_from(timestep)
        x0, raw = self._denoise(output, sample, level)
        read_from = x0 if use_clipped_model_output else raw
        epsilon = (sample - broadcast(level.alpha, x0) * read_from) / broadcast(level.sigma, x0)
        # Song et al., equation 16
        fresh = eta**2 * between.variance
        kept = (next_level.sigma**2 - fresh).clamp_min(0).sqrt()
        # Song et al., equation 12
        previous = broadcast(next_level.alpha, x0) * x0 + broadcast(kept, x0) * epsilon
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("generator and variance_noise were both given; give one source of noise")
            if variance_noise is None:
                variance_noise = randn_tensor(
                    output.shape, as_generators(generator), output.device, output.dtype
                )
            previous = previous + broadcast(fresh.sqrt(), x0) * variance_noise
        result = previous.to(dtype), x0.to(dtype)
        return DDIMSchedulerOutput(*result) if return_dict else result
