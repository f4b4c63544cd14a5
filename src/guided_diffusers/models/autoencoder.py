"""A KL autoencoder whose `encode` and `decode` speak standardised latents.

Latent diffusion wants latents of mean 0 and deviation 1. Stable Diffusion multiplies by one number that
every pipeline has to know (`scaling_factor`); here the mean m and deviation s of each channel live in the
model, and a pipeline has nothing to know:

    encode(x) = N((mean(x) - m) / s, (std(x) / s)^2)        decode(z) = decoder(s z + m)

The raw posterior N(mean(x), std(x)^2), which the KL divergence and the evidence bound need, is `posterior`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import BaseOutput
from torch import Tensor

from guided_diffusers.models.safe import PICKLE_SUFFIXES, SafeWeightsMixin

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


class VariationalAutoencoder(SafeWeightsMixin, AutoencoderKL):
    """AutoencoderKL with standardised latents; takes its whole configuration and its weights.

    `latents_mean` and `latents_std` hold one number a latent channel (None: 0 and 1). Checkpoints of
    AutoencoderKL carry neither, so they load unchanged and keep their `scaling_factor`; a new model's is 1.
    The statistics are honoured wherever they are set; SDXL's pipelines, which also use them, do it twice.

    Every other argument is AutoencoderKL's.

    Raises:
        ValueError: if the statistics are not one finite number a channel, or a deviation is not positive.
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
    ) -> None:
        _check_statistics("latents_mean", latents_mean, latent_channels)
        _check_statistics("latents_std", latents_std, latent_channels, positive=True)
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
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """As ConfigMixin's; an AutoencoderKL configuration without scaling_factor gets AutoencoderKL's."""
        if config_dict.get("_class_name") == AutoencoderKL.__name__:
            config_dict = {"scaling_factor": _AUTOENCODER_KL_SCALING_FACTOR, **config_dict}
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def from_autoencoder_kl(cls, model: AutoencoderKL) -> Self:
        """A copy of `model` in this class: its configuration, weights, dtype, device and training mode."""
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

    def set_latent_statistics(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Sets the raw latents' mean and deviation, one number a channel; the configuration keeps them."""
        statistics = {"latents_mean": mean, "latents_std": std}
        values = {k: torch.as_tensor(v, dtype=torch.float64).tolist() for k, v in statistics.items()}
        _check_statistics("latents_mean", values["latents_mean"], self.config.latent_channels)
        _check_statistics("latents_std", values["latents_std"], self.config.latent_channels, positive=True)
        # A copy made from this configuration takes its defaults for the names listed here.
        defaults = [k for k in self.config.get("_use_default_values", []) if k not in values]
        self.register_to_config(**values, _use_default_values=defaults)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def per_channel(values: Sequence[float] | None, default: float) -> Tensor:
            values = [default] * self.config.latent_channels if values is None else values
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

        return per_channel(self.config.latents_mean, 0.0), per_channel(self.config.latents_std, 1.0)

    @property
    def _standardises(self) -> bool:
        return self.config.latents_mean is not None or self.config.latents_std is not None

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The raw posterior q(z|x), before standardisation, of images (batch, channels, height, width)."""
        return super().encode(images).latent_dist

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior of the standardised latents of images (batch, channels, height, width) in [-1, 1]."""
        posterior = self.posterior(x)
        if self._standardises:
            mean, std = self._statistics(posterior.mean)
            moments = torch.cat([(posterior.mean - mean) / std, posterior.logvar - 2 * std.log()], dim=1)
            posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images of standardised latents z (batch, latent_channels, h, w); `generator` is unused."""
        if self._standardises:
            mean, std = self._statistics(z)
            z = z * std + mean
        return super().decode(z, return_dict=return_dict)

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
        latents = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        reconstruction = super().decode(latents).sample
        if return_posterior:
            output = VariationalAutoencoderOutput(sample=reconstruction, latent_dist=posterior)
            return output if return_dict else (reconstruction, posterior)
        return DecoderOutput(sample=reconstruction) if return_dict else (reconstruction,)


def _check_statistics(
    name: str, values: Sequence[float] | None, channels: int, positive: bool = False
) -> None:
    if values is None:
        return
    given = torch.as_tensor(values, dtype=torch.float64)
    if given.shape != (channels,) or not bool(given.isfinite().all()):
        raise ValueError(f"{name} must be {channels} finite numbers, one a latent channel; got {values}.")
    if positive and not bool((given > 0).all()):
        raise ValueError(f"{name} must be positive; got {values}.")
