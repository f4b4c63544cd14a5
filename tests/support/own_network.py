"""A denoiser of one's own, as `denoiser.class: own_network.OwnDenoiser` names it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class OwnDenoiser(ModelMixin, ConfigMixin):
    """Two convolutions, and between them what the timestep, a class and a text add to each channel."""

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        num_class_embeds: int | None = None,
        cross_attention_dim: int | None = None,
        width: int = 8,
    ) -> None:
        super().__init__()
        self.begin = nn.Conv2d(in_channels, width, 3, padding=1)
        self.end = nn.Conv2d(width, out_channels, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.text = None if cross_attention_dim is None else nn.Linear(cross_attention_dim, width)

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Tensor:
        """The output itself: no tuple, no object."""
        share = torch.as_tensor(timestep, device=sample.device).expand(len(sample)).to(sample) / 1000
        added = self.time(share[:, None])
        if self.classes is not None:
            added = added + self.classes(class_labels)
        if self.text is not None:
            added = added + self.text(encoder_hidden_states).mean(1)
        return self.end(torch.nn.functional.silu(self.begin(sample) + added[:, :, None, None]))


def own_denoiser(in_channels: int, out_channels: int, sample_size: int, **arguments: Any) -> OwnDenoiser:
    """The same by a function."""
    return OwnDenoiser(sample_size, in_channels, out_channels, **arguments)
