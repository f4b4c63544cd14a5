"""Latents as a denoiser gives them, for the decoder that will have to draw them.

A decoder trained on an encoder's latents alone is sharp on those. What a denoiser generates is smoother: it
is an estimate, and each step averages over what the noise has hidden. So the last stage of a decoder's
training may take its latents from the denoiser: x_0 is noised to a level drawn at random and estimated in one
step, under the null condition, and the decoder learns to draw the original from the estimate. At a level of 0
this is the latent itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.randomness import Stream, randn_for, seed_for
from guided_diffusers.losses import add_noise
from guided_diffusers.models.autoencoder import VariationalAutoencoder
from guided_diffusers.models.latents import raw_statistics
from guided_diffusers.models.parts import check_channels
from guided_diffusers.models.standardised import per_channel
from guided_diffusers.pipelines import TextToImagePipeline
from guided_diffusers.schedulers import prediction_type_of, process_of
from guided_diffusers.training.engine.order import uniform_for


class DenoisedLatents:
    """One-step estimates of latents at random noise levels.

    Args:
        pipeline: The denoiser, with its text encoder (for the empty prompt) and its scheduler (for the
            levels).
        maximum: The highest sigma / alpha; levels are uniform in (0, maximum].
        seed: Levels and noise are a function of it and of the samples' positions.
    """

    def __init__(self, pipeline: TextToImagePipeline, maximum: float, seed: int) -> None:
        if not maximum > 0:
            raise ValueError(f"maximum is {maximum}; allowed: above 0, in sigma / alpha")
        check_that(pipeline.vae is not None, "the denoiser's vae", None, "one: it draws pixels")
        self.maximum, self.seed = maximum, seed
        self.process = process_of(pipeline.scheduler)
        self.statistics = raw_statistics(pipeline.vae.config)
        self.denoiser = ModelDenoiser(pipeline.unet.eval(), prediction_type_of(pipeline.scheduler))
        with torch.no_grad():
            self.null = pipeline.encode_prompt("", torch.device("cpu"), 1, False)[0]

    def check_statistics(self, autoencoder: VariationalAutoencoder) -> None:
        """Raise ValueError where the denoiser was not trained on the latents of this autoencoder's scale."""
        check_channels(
            "the denoiser",
            self.denoiser.model.config.in_channels,
            "the latent",
            autoencoder.config.latent_channels,
        )
        own, like = raw_statistics(autoencoder.config), torch.zeros(1, dtype=torch.float64)
        pairs = zip(per_channel(*self.statistics, like), per_channel(*own, like), strict=True)
        if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in pairs):
            raise ValueError(
                f"the denoiser's vae has latents of mean and deviation {self.statistics}, the autoencoder of "
                f"{own}; allowed: the autoencoder whose latents the denoiser was trained on"
            )

    def draw(self, positions: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Levels in (0, 1], `(batch,)`, and standard normal noise, `(batch, *shape)`, of some positions."""
        level = 1 - uniform_for(seed_for(self.seed, Stream.DENOISED_LEVEL), positions)
        return level, randn_for(seed_for(self.seed, Stream.DENOISED_NOISE), positions, shape)

    @torch.no_grad()
    def __call__(self, latents: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Estimates of standardised latents, `(batch, channels, height, width)`, from what `draw` gave."""
        ratio = (self.maximum * level.double()).clamp_min(1e-3)
        noise_level = self.process.at_log_noise_to_signal(ratio.log().cpu())
        null = self.null.to(latents.device).expand(len(latents), -1, -1)
        self.denoiser.model.to(latents.device)
        sample = add_noise(latents.float(), noise, noise_level)
        return self.denoiser(sample, noise_level, Condition({"encoder_hidden_states": null})).x0
