"""Autoencoders as one class, whose `encode` and `decode` speak standardised latents.

Latent diffusion wants latents of mean 0 and deviation 1. Stable Diffusion multiplies by one number that
every pipeline has to know (`scaling_factor`); here the mean m and deviation s of each channel live in the
model, and a pipeline has nothing to know:

    encode(x) = N((mean(x) - m) / s, (std(x) / s)^2)        decode(z) = decoder(s z + m)

A checkpoint of AutoencoderKL comes in with its `scaling_factor` c and `shift_factor` m as s = 1 / c and m
(`latents.raw_statistics`), so its latents here are those that diffusers' pipelines make of it.

The raw posterior N(mean(x), std(x)^2), which the KL divergence and the evidence bound need, is `posterior`.

Three choices make the family:

    posterior    "gaussian": a variational autoencoder.
                 "deterministic": the plain autoencoder, the limit of a variance that goes to 0. It encodes,
                 but has no prior that its codes follow, no divergence and no likelihood.
    latent       "spatial": a map, smaller by a power of 2, what latent diffusion works on (AutoencoderKL).
                 "vector": one z of d = latent_channels numbers an image, shaped (batch, d, 1, 1), whose prior
                 N(0, I) can be sampled: the convolution behind the encoder covers its whole map, and the one
                 before the decoder spreads z over it again.
    likelihood   what the decoder's output says of pixels (`decoder_likelihoods`); None: it is an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from guided_diffusers.core.checks import check_choice, check_that
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.models import evidence
from guided_diffusers.models.decoder_likelihoods import make_likelihood
from guided_diffusers.models.evidence import EvidenceBound
from guided_diffusers.models.latents import raw_statistics, shrunk, spatial_factor
from guided_diffusers.models.point_posterior import PointPosterior
from guided_diffusers.models.safe import PICKLE_SUFFIXES, SafeWeightsMixin
from guided_diffusers.models.standardised import StandardisedLatentsMixin

# What AutoencoderKL means by a configuration that does not mention scaling_factor.
_AUTOENCODER_KL_SCALING_FACTOR = 0.18215


@dataclass
class VariationalAutoencoderOutput(BaseOutput):
    """What a training step needs of one forward pass.

    Attributes:
        sample: the reconstruction, (batch, channels, height, width).
        latent_dist: the raw posterior q(z|x), before standardisation, if it was asked for.
    """

    sample: Tensor
    latent_dist: DiagonalGaussianDistribution | None = None


class VariationalAutoencoder(SafeWeightsMixin, StandardisedLatentsMixin, AutoencoderKL):
    """AutoencoderKL, standardised latents, other posteriors; takes its whole configuration and its weights.

    `latents_mean` and `latents_std` hold one number a latent channel (None: 0 and 1). A `scaling_factor` and
    a `shift_factor`, such as an AutoencoderKL's, are taken into them: the configuration then says 1 and 0,
    and a pipeline that multiplies and shifts by it changes nothing. Only SDXL's pipelines, which read the
    statistics themselves, would use them twice: give those the AutoencoderKL.

    Every other argument but the last three is AutoencoderKL's.

    Args:
        posterior: "gaussian" or "deterministic".
        latent: "spatial" or "vector"; a vector is of images of `sample_size` only.
        likelihood: None, "gaussian", "bernoulli", "discretised_logistic" or "discretised_gaussian".

    Raises:
        ValueError: if the statistics are not one finite number a channel, a deviation or the scale is not
            positive, an option is unknown, or a vector's image does not shrink to whole pixels.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        posterior: Literal["gaussian", "deterministic"] = "gaussian",
        latent: Literal["spatial", "vector"] = "spatial",
        likelihood: str | None = None,
    ) -> None:
        check_choice("posterior", posterior, ("gaussian", "deterministic"))
        check_choice("latent", latent, ("spatial", "vector"))
        statistics = raw_statistics(self.config)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=1.0,
            shift_factor=None if shift_factor is None else 0.0,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )
        if statistics != (latents_mean, latents_std):
            self.set_latent_statistics(*statistics)
        self.decoder_likelihood = make_likelihood(likelihood)
        if latent == "vector":
            self._make_vector_layers(use_quant_conv and use_post_quant_conv)

    def _make_vector_layers(self, both: bool) -> None:
        """Convolutions as large as the encoder's map in place of the two of size 1."""
        check_that(both, "latent", "vector", "'spatial', or use_quant_conv and use_post_quant_conv with it")
        width, sides = self.config.latent_channels, self._map_size(*self.image_size)
        self.quant_conv = nn.Conv2d(2 * width, 2 * width, sides)
        self.post_quant_conv = nn.ConvTranspose2d(width, width, sides)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """As ConfigMixin's; an AutoencoderKL configuration without scaling_factor gets AutoencoderKL's.

        Raises:
            ValueError: it is of another class of diffusers.
        """
        kind = config_dict.get("_class_name")
        if kind != AutoencoderKL.__name__ and isinstance(kind, str) and hasattr(diffusers, kind):
            raise ValueError(f"the configuration is of {kind}, not AutoencoderKL: use diffusers.{kind}")
        if kind == AutoencoderKL.__name__:
            config_dict = {"scaling_factor": _AUTOENCODER_KL_SCALING_FACTOR, **config_dict}
        # What a model in memory lists as defaults may be its class's and not this one's.
        defaults = [k for k in config_dict.get("_use_default_values", []) if k != "scaling_factor"]
        return super().extract_init_dict({**config_dict, "_use_default_values": defaults}, **kwargs)

    @classmethod
    def from_autoencoder_kl(cls, model: AutoencoderKL) -> Self:
        """A copy of `model` in this class: weights, standardised latents, dtype, device, training mode."""
        ours = cls(**{name: model.config[name] for name in cls._get_init_keys(cls) if name in model.config})
        ours.load_state_dict(model.state_dict())
        return torch.nn.Module.to(ours, device=model.device, dtype=model.dtype).train(model.training)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Self:
        """As FromOriginalModelMixin.from_single_file; raises ValueError for a pickle."""
        given = pretrained_model_link_or_path_or_dict
        if isinstance(given, (str, os.PathLike)) and os.fspath(given).endswith(PICKLE_SUFFIXES):
            raise ValueError(f"{given} is a pickle, which is refused; convert it to safetensors first.")
        return super().from_single_file(given, *args, **kwargs)

    @property
    def image_size(self) -> tuple[int, int]:
        """The configured `sample_size` as (height, width)."""
        size = self.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The shape of an image's latent, (latent_channels, h, w).

        Args:
            height: Of the image; `sample_size` where it is not given.
            width: As height.

        Raises:
            ValueError: a vector's image is not of `sample_size`, or sides do not divide evenly.
        """
        sides = tuple(
            default if given is None else given
            for given, default in zip((height, width), self.image_size, strict=True)
        )
        map_size = self._map_size(*sides)
        if self.config.latent == "vector":
            self._check_vector_size(sides)
            map_size = (1, 1)
        return (self.config.latent_channels, *map_size)

    def _map_size(self, height: int, width: int) -> tuple[int, int]:
        return shrunk(height, width, spatial_factor(self))

    def _check_vector_size(self, sides: Sequence[int]) -> None:
        allowed = f"{self.image_size}, the sample_size, where latent is 'vector'"
        check_that(tuple(sides) == self.image_size, "the images' size", tuple(sides), allowed)

    def enable_tiling(self) -> None:
        """As AutoencoderKL's; raises ValueError for a vector latent, which is of the whole image."""
        allowed = "'spatial': a vector is of the whole image and cannot be tiled"
        check_that(self.config.latent != "vector", "latent", "vector", allowed)
        super().enable_tiling()

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The raw posterior q(z|x), before standardisation, of images (batch, channels, height, width).

        Raises:
            ValueError: images of another size than a vector latent's.
        """
        if self.config.latent == "vector":
            self._check_vector_size(images.shape[2:])
        posterior = super().encode(images).latent_dist
        return PointPosterior(posterior.mean) if self.config.posterior == "deterministic" else posterior

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior of the standardised latents of images (batch, channels, height, width) in [-1, 1]."""
        posterior = self.posterior(x)
        if self.standardises:
            mean = self.standardise(posterior.mean)
            if isinstance(posterior, PointPosterior):
                posterior = PointPosterior(mean)
            else:
                log_variance = (posterior.logvar - 2 * self.latent_statistics(mean)[1].log()).to(mean)
                posterior = DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images of standardised latents z (batch, latent_channels, h, w); `generator` is unused.

        With a likelihood they are its means (`DecoderLikelihood.mean`), in [-1, 1] but for what a network
        overshoots.
        """
        images = self.decode_raw(self.destandardise(z))
        return DecoderOutput(sample=images) if return_dict else (images,)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Images (batch, channels, height, width) of raw latents, whose prior is N(0, I)."""
        return self.image_of(self.decoder_output(latents))

    def decoder_output(self, latents: Tensor) -> Tensor:
        """The decoder's output at raw latents: what `decoder_likelihood` takes."""
        return super().decode(latents).sample

    def image_of(self, output: Tensor) -> Tensor:
        """The image of a decoder's output."""
        return output if self.decoder_likelihood is None else self.decoder_likelihood.mean(output)

    def elbo(
        self,
        images: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> EvidenceBound:
        """One draw of the evidence bound of images, in nats and bits/dim: see `evidence.elbo`."""
        return evidence.elbo(self, images, generator, beta, free_bits)

    def log_likelihood(
        self,
        images: Tensor,
        num_samples: int = 100,
        method: Literal["importance", "prior"] = "importance",
        seed: int = 0,
        first_index: int = 0,
        chunk: int = 256,
    ) -> Tensor:
        """An estimate of log p(x), (batch,) nats: see `evidence.log_likelihood`.

        "importance" is IWAE. "prior" averages over samples of the prior, with a hopeless variance: `evidence`
        has the figures.
        """
        return evidence.log_likelihood(self, images, num_samples, method, seed, first_index, chunk)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        return_posterior: bool = False,
    ) -> VariationalAutoencoderOutput | DecoderOutput | tuple[Any, ...]:
        """Encodes and decodes images; all that a training loss needs, so that a wrapper such as DDP sees it.

        Args:
            sample: images, (batch, channels, height, width) in [-1, 1].
            sample_posterior: decode a draw from the posterior (training) and not its mean.
            return_dict: an output object and not a tuple.
            generator: source of the draw.
            return_posterior: give the raw posterior too, as VariationalAutoencoderOutput.
        """
        posterior = self.posterior(sample)
        latents = posterior.sample(as_generators(generator)) if sample_posterior else posterior.mode()
        reconstruction = self.decode_raw(latents)
        if return_posterior:
            output = VariationalAutoencoderOutput(sample=reconstruction, latent_dist=posterior)
            return output if return_dict else (reconstruction, posterior)
        return DecoderOutput(sample=reconstruction) if return_dict else (reconstruction,)
