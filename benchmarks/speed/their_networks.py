"""Networks of other trainers as networks of one's own in ours: `denoiser.class: their_networks.Dit`.

DIT_CHECKOUT names a checkout of facebookresearch/DiT; denoising_diffusion_pytorch is imported.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

DDP_SIZE = {"dim": 32, "dim_mults": [1, 2, 4]}
DIT_SIZE, CLASSES = "DiT-S/2", 10


def dit_models() -> Any:
    """The checkout's models.py."""
    path = Path(os.environ["DIT_CHECKOUT"]) / "models.py"
    specification = importlib.util.spec_from_file_location("dit_models", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Dit(ModelMixin, ConfigMixin):
    """DiT with learned variances, of a size that its table names; it drops classes itself."""

    @register_to_config
    def __init__(
        self, sample_size: int, in_channels: int, out_channels: int, num_class_embeds: int, size: str
    ) -> None:
        super().__init__()
        self.net = dit_models().DiT_models[size](
            input_size=sample_size, in_channels=in_channels, num_classes=num_class_embeds
        )

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Epsilon and variances, (batch, 2 * channels, height, width)."""
        return self.net(sample, timestep, class_labels)


class DenoisingDiffusionUnet(ModelMixin, ConfigMixin):
    """denoising_diffusion_pytorch's Unet."""

    @register_to_config
    def __init__(
        self, sample_size: int, in_channels: int, out_channels: int, dim: int, dim_mults: list[int]
    ) -> None:
        from denoising_diffusion_pytorch import Unet

        super().__init__()
        self.net = Unet(dim=dim, dim_mults=tuple(dim_mults), channels=in_channels)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """What the scheduler's prediction type says, as the sample."""
        return self.net(sample, timestep.to(sample.dtype))
