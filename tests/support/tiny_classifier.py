"""A tiny noise-aware classifier with the interface that guidance relies on, and tiny UNets to go with it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

NAMES = {0: "boot", 1: "bag", 2: "coat"}


class TinyClassifier(ModelMixin, ConfigMixin):
    """Two convolutions and the timestep; `in_channels` and `id2label` in its configuration."""

    @register_to_config
    def __init__(self, in_channels: int = 1, num_classes: int = 3, id2label: dict | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.time = nn.Sequential(Timesteps(8, True, 0), TimestepEmbedding(8, 8))
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        hidden = self.first(sample)
        hidden = hidden + self.time(timestep.reshape(-1).to(sample.device))[..., None, None]
        return self.head(self.second(hidden.tanh()).tanh().mean((2, 3)))

    def log_prob(self, sample: Tensor, level: Any, labels: Tensor) -> Tensor:
        scaled = level.input_scale.to(sample) * sample
        logits = self(scaled.to(self.dtype), torch.as_tensor(level.timestep))
        return logits.float().log_softmax(1).gather(1, labels[:, None].to(sample.device))[:, 0]


def tiny_classifier(seed: int = 0, **overrides: Any) -> TinyClassifier:
    """In evaluation mode; its logits are sharp enough for its gradient to be seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = TinyClassifier(**{"id2label": NAMES, **overrides}).eval()
    with torch.no_grad():
        classifier.head.weight *= 20
    return classifier


def tiny_noise_aware_classifier(scheduler: Any, **overrides: Any) -> Any:
    """A real one of 8x8 samples and three classes, which knows the scheduler's process."""
    from guided_diffusers import NoiseAwareClassifier  # a test imports this module before the package
    from guided_diffusers.schedulers import describe_process

    config = {"sample_size": 8, "in_channels": 1, "num_classes": 3, "block_out_channels": (8, 8)}
    config |= {"layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NoiseAwareClassifier(**{**config, "process": describe_process(scheduler), **overrides}).eval()


def tiny_image_unet(channels: int = 1, outputs: int | None = None, **overrides: Any) -> UNet2DModel:
    """An 8x8 UNet2DModel; `num_class_embeds` makes it class-conditional."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=outputs or channels,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **overrides,
        ).eval()
