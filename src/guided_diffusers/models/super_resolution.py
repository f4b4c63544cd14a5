"""What an upsampler sees beside its sample: the small picture, noised to a level and scaled up.

An upsampler is a denoiser of large pictures (or of their latents) whose network sees the channels of x_t and
of the small picture z together. What a base model draws is not quite what small pictures are, so in training
z is noised to a random level s of a process of its own, and the network is told s (conditioning
augmentation): at sampling a level above 0 hides what the base model got wrong.

    z_s = alpha_s z + sigma_s eps                                                               (1)

The level is told as a timestep of that process through `class_labels`, embedded as a timestep
(`class_embed_type="timestep"`) or from a table (`num_class_embeds`, as in StableDiffusionUpscalePipeline);
where `class_labels` are classes, through one input channel more, which holds sigma_s everywhere. Level 0 is
the picture itself.

References:
    Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation" (arXiv:2106.15282), section 4.
    Saharia et al., "Image Super-Resolution via Iterative Refinement" (arXiv:2104.07636), section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.models.latents import image_channels, latent_channels
from guided_diffusers.schedulers import process_of

LOW_RES = "low_res"
"""The argument by which `SuperResolutionNetwork` is given what it sees beside the sample."""


class SuperResolutionNetwork(nn.Module):
    """A network that sees a picture beside the sample: their channels concatenated, the sample's first.

    Args:
        network: Called as `network((batch, channels + further, height, width), timestep, **arguments)`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Any, *, low_res: Tensor, **arguments: Any) -> Any:
        """The network's output.

        Args:
            sample: `(batch, channels, height, width)`, scaled as the network sees it.
            timestep: Of the sample.
            low_res: What it sees beside it, `(batch, further, height, width)`.
            arguments: Further ones of the network.
        """
        return self.network(torch.cat([sample, low_res.to(sample)], dim=1), timestep, **arguments)


@dataclass(frozen=True, kw_only=True)
class Channels:
    """How the input channels of an upsampler's network are shared out.

    Attributes:
        sample: Of x_t.
        picture: Of the small picture.
        told: Whether one more holds the level of the small picture's noise.
    """

    sample: int
    picture: int
    told: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], vae: Any = None) -> Channels:
        """From a network's configuration and the autoencoder of its latents; None for pixels.

        Raises:
            ValueError: Other channels than those of a sample and a picture.
        """
        seen, drawn = config["in_channels"], config["out_channels"]
        sample = seen // 2 if vae is None else latent_channels(vae.config)
        picture = seen // 2 if vae is None else image_channels(vae.config)
        if seen - sample - picture not in (0, 1) or drawn not in (sample, 2 * sample):
            what = "of pixels, C" if vae is None else f"of latents of {sample} and pictures of {picture}"
            allowed = "2 C or 2 C + 1, and C or 2 C" if vae is None else f"{sample + picture} (+ 1), {sample}"
            raise ValueError(
                f"unet has in_channels {seen} and out_channels {drawn}; allowed for an upsampler {what} "
                f"channels: {allowed}"
            )
        return cls(sample=sample, picture=picture, told=seen - sample - picture == 1)

    @property
    def further(self) -> int:
        """What the network sees beside the sample."""
        return self.picture + self.told

    def beside(self, picture: Tensor, sides: Sequence[int], sigma: Tensor | None) -> Tensor:
        """What the network sees beside the sample, `(batch, further, *sides)`, of a (noised) small picture.

        The picture is scaled up bilinearly, as ADM's upsamplers see it; one of the sample's sides stays.

        Args:
            picture: `(batch, picture, height, width)`.
            sides: Height and width of the sample.
            sigma: Of the picture's noise, `(batch,)`; None for none.
        """
        large = scaled_up(picture, sides)
        if not self.told:
            return large
        sigma = torch.zeros(1) if sigma is None else sigma
        return torch.cat([large, broadcast(sigma, large).expand_as(large[:, :1])], dim=1)


def scaled_up(picture: Tensor, sides: Sequence[int]) -> Tensor:
    """A picture `(batch, channels, height, width)` at other sides, bilinearly; at its own as it is."""
    if tuple(picture.shape[2:]) == tuple(sides):
        return picture
    return functional.interpolate(picture, tuple(sides), mode="bilinear", align_corners=False)


def area_averaged(picture: Tensor, factor: int) -> Tensor:
    """A picture `(batch, channels, height, width)` whose pixels are the means of factor x factor of them."""
    return functional.avg_pool2d(picture, factor)


def blurred(picture: Tensor, deviation: Tensor) -> Tensor:
    """Small pictures under a 3 x 3 Gaussian blur; where the deviation is 0 as they are.

    Args:
        picture: `(batch, channels, height, width)`.
        deviation: In pixels, `(batch,)`.
    """
    # k(i) ~ exp(-i^2 / 2 s^2) for i = -1, 0, 1
    side = torch.exp(-0.5 / deviation.clamp_min(1e-3).double() ** 2)
    of_side, of_middle = (broadcast(part / (1 + 2 * side), picture) for part in (side, torch.ones(())))
    for axis in (2, 3):
        padding = (0, 0, 1, 1) if axis == 2 else (1, 1, 0, 0)
        padded, length = functional.pad(picture, padding, mode="replicate"), picture.shape[axis]
        first, middle, last = (padded.narrow(axis, start, length) for start in range(3))
        picture = of_middle * middle + of_side * (first + last)
    return picture


class Augmentation:
    """The levels to which small pictures are noised: 0, none; s above 0, timestep s of a scheduler's process.

    Args:
        scheduler: With the betas of a DDPMScheduler in its configuration, such as a pipeline's
            `low_res_scheduler`.
        most: The highest level.

    Raises:
        ValueError: The process has no timestep `most`.
    """

    def __init__(self, scheduler: Any, most: int) -> None:
        self.process = process_of(scheduler)
        self.most = check_int("max_noise_level", most, 0, scheduler.config.num_train_timesteps - 1)

    def at(self, level: Tensor) -> NoiseLevel:
        """The NoiseLevel of integer levels, `(batch,)`; its timestep is what the network is told."""
        noised = self.process.at(level)
        alpha, sigma = torch.where(level > 0, noised.alpha, 1.0), torch.where(level > 0, noised.sigma, 0.0)
        return NoiseLevel(alpha=alpha, sigma=sigma, timestep=level)

    def noised(self, picture: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, NoiseLevel]:
        """Small pictures `(batch, ...)` at integer levels `(batch,)`, and the NoiseLevel of these."""
        at = self.at(level)
        # (1)
        return broadcast(at.alpha, picture) * picture + broadcast(at.sigma, picture) * noise, at
