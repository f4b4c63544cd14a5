"""What pipelines without a prompt share: a `UNet2DModel` in pixels or in an autoencoder's latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from guided_diffusers.models import latents
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.noise import noise_of


class UnpromptedMixin:
    """Noise of the denoiser's shape, and images of samples. It uses the components `unet` and `vae`."""

    unet: Any
    vae: Any
    _execution_device: torch.device

    def _check_unet(self) -> None:
        """Raise ValueError where the denoiser has to be told more than a class, or does not fit its vae."""
        check_vae(self.unet, self.vae)
        inputs.check_unet(self.unet, ("class_labels",))
        kind = getattr(self.unet, "config", {}).get("class_embed_type")
        if kind is not None:
            raise ValueError(
                f"unet has class_embed_type {kind!r}; allowed: None, with num_class_embeds, because this "
                "pipeline tells it the index of a class"
            )

    def _sample_shape(self, count: int) -> tuple[int, ...]:
        return (count, self.unet.config.in_channels, *inputs.sample_sides(self.unet))

    def _noise(self, count: int, generator: Any, given: Tensor | None = None) -> Tensor:
        """Standard normal noise `(count, channels, height, width)`, or the given."""
        if given is not None:
            return given.to(self._execution_device)
        return noise_of(self._sample_shape(count), generator, self._execution_device, self.unet.dtype)

    def _images(self, sample: Tensor, output_type: str, generator: Any = None) -> Any:
        """Samples decoded, as PIL images, arrays or tensors; "latent" leaves them as they are."""
        if output_type == "latent":
            return sample
        if self.vae is not None:
            sample = latents.decode(self.vae, sample, generator)
        return VaeImageProcessor().postprocess(sample, output_type)
