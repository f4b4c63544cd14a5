"""A classifier of noised samples, log p(y | x_t): the encoder half of the ADM denoiser.

Bayes' rule turns an unconditional denoiser into a conditional one by the gradient of a classifier,
grad_x log p(y | x_t), which must know x_t at every noise level. So it is trained on noised samples and sees
what the denoiser sees: `input_scale * x_t` and the timestep,

    conv_in -> residual blocks, with attention at some levels -> middle -> pooling -> logits,

the timestep entering every residual block. Pooling, by the name of the published code:

    attention   normalisation, then attention pooling (models/pooling.py); for one image size
    adaptive    normalisation, then the mean over positions, one linear layer
    spatial     the means over positions of every block's output, concatenated, two linear layers
    spatial_v2  likewise, normalised between the two

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

from guided_diffusers.core.checks import check_choice, check_tensor, check_that
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.process import Process
from guided_diffusers.models.gradients import scale_gradient
from guided_diffusers.models.labels import NamedClassesMixin, checked_names
from guided_diffusers.models.levels import down_blocks, head_widths
from guided_diffusers.models.pooling import AttentionPool2d
from guided_diffusers.models.process import TrainedProcessMixin
from guided_diffusers.models.safe import SafeWeightsMixin

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
BLOCK_TYPES = ("DownBlock2D", "AttnDownBlock2D")
DOWNSAMPLE_TYPES = ("resnet", "conv")
TIME_SCALE_SHIFTS = ("scale_shift", "default")
_SPATIAL_FEATURES = 2048
_HALF_GRADIENT_FACTOR = 1024.0


class NoiseAwareClassifier(TrainedProcessMixin, NamedClassesMixin, SafeWeightsMixin, ModelMixin, ConfigMixin):
    """Logits of noised pixels or latents at a timestep.

    Args:
        sample_size: Height and width of a sample; only `pool="attention"` is bound to it.
        in_channels: Channels of a sample: of pixels, or of latents.
        num_classes: Classes.
        block_out_channels: Channels of each resolution, each half of the one before.
        layers_per_block: Residual blocks at each resolution.
        down_block_types: For each resolution "DownBlock2D" or, with attention, "AttnDownBlock2D"; by default
            without attention at the first and with it at the others.
        downsample_type: "resnet" or "conv".
        attention_head_dim: Channels of an attention head: one number, or one for each resolution.
        dropout: In residual blocks, in training.
        norm_num_groups: Groups of the normalisations.
        norm_eps: Their epsilon.
        resnet_time_scale_shift: How the timestep enters: "scale_shift" or "default" (added).
        timestep_channels: Channels of the timestep's sinusoids; None is `block_out_channels[0]`.
        time_embedding_dim: Channels of its embedding; None is four times that.
        pool: One of `POOLS`.
        id2label: The name of each class, by index; names may then be given as labels.
        process: What the classifier was trained on, as `schedulers.describe_process(scheduler)` gives it;
            `check_scheduler` compares it. None is unknown.

    Raises:
        ValueError: A value that is not allowed, or lengths that do not fit.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 2,
        down_block_types: tuple[str, ...] | None = None,
        downsample_type: str = "resnet",
        attention_head_dim: int | tuple[int, ...] = 64,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "scale_shift",
        timestep_channels: int | None = None,
        time_embedding_dim: int | None = None,
        pool: str = "attention",
        id2label: Mapping[int | str, str] | None = None,
        process: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        types = tuple(down_block_types or (BLOCK_TYPES[0], *BLOCK_TYPES[1:] * (len(block_out_channels) - 1)))
        _check_options(types, downsample_type, resnet_time_scale_shift, pool, len(block_out_channels))
        widths = head_widths(attention_head_dim, block_out_channels, types)
        checked_names(id2label or {}, num_classes)
        if process is not None:
            Process.from_config(process)
        timestep_channels = timestep_channels or block_out_channels[0]
        embedded = time_embedding_dim or 4 * timestep_channels
        common = {
            "temb_channels": embedded,
            "dropout": dropout,
            "resnet_eps": norm_eps,
            "resnet_act_fn": "silu",
            "resnet_groups": norm_num_groups,
            "resnet_time_scale_shift": resnet_time_scale_shift,
        }
        self.time_proj = Timesteps(timestep_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(timestep_channels, embedded)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)
        self.down_blocks = down_blocks(
            types, block_out_channels, widths, downsample_type, num_layers=layers_per_block, **common
        )
        last = block_out_channels[-1]
        self.mid_block = UNetMidBlock2D(
            last, attention_head_dim=widths[-1], attn_groups=norm_num_groups, **common
        )
        pooled = last
        if pool.startswith("spatial"):
            pooled = _sum_of_widths(block_out_channels, layers_per_block)
        else:
            self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps)
        size = sample_size >> (len(block_out_channels) - 1)
        self.head = _head(pool, pooled, num_classes, norm_num_groups, size, widths[-1])

    def forward(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Logits of noised samples.

        Args:
            sample: `input_scale * x_t`, (batch, in_channels, height, width), of any dtype.
            timestep: As the process has it, () or (batch,).

        Returns:
            (batch, num_classes), of the network's dtype.

        Raises:
            ValueError: Other channels or, with attention pooling, another size than the classifier was
                made for; a timestep that is neither one nor one a sample.
        """
        self._check_sample(sample)
        embedding = self._embed(timestep, sample)
        hidden = self.conv_in(sample.to(self.dtype))
        outputs = [hidden]
        for block in self.down_blocks:
            hidden, states = block(hidden, embedding)
            outputs += states
        hidden = self.mid_block(hidden, embedding)
        if self.config.pool.startswith("spatial"):
            return self.head(torch.cat([output.mean(dim=(2, 3)) for output in [*outputs, hidden]], dim=1))
        hidden = nn.functional.silu(self.conv_norm_out(hidden))
        return self.head(hidden if self.config.pool == "attention" else hidden.mean(dim=(2, 3)))

    def log_prob(self, sample: Tensor, level: NoiseLevel, labels: Any) -> Tensor:
        """Log p(y | x_t) in nats: what `ClassifierGuidance` takes as its `log_prob`.

        With a network in half precision the logarithm and its gradient with respect to a float32 sample are
        float32 all the same. In float16 the backward runs on a multiple of the gradient, divided out at the
        sample: gradients of the float16 weights keep the factor, so train by `forward`.

        Args:
            sample: x_t, unscaled, (batch, in_channels, height, width).
            level: Its noise level; the network sees `level.input_scale * sample` and `level.timestep`.
            labels: Indices or names, one for all or one a sample; or the condition of a denoiser that has
                them under `class_labels`: a mapping, or a `Condition`, whose positive part counts.

        Returns:
            (batch,), float32 (float64 of a float64 network).

        Raises:
            ValueError: A label outside the classes, another number of labels than samples, a level without
                a timestep, or a sample that `forward` refuses.
        """
        ids = self.ids_for(sample, labels)
        return self.answers(sample, level).log_softmax(dim=1).gather(1, ids[:, None])[:, 0]

    def answers(self, sample: Tensor, level: NoiseLevel) -> Tensor:
        """What the network says of x_t, in float32 and with a float32 gradient whatever its own precision.

        Args:
            sample: x_t, unscaled, (batch, in_channels, height, width).
            level: Its noise level; the network sees `level.input_scale * sample` and `level.timestep`.

        Returns:
            `forward`'s (batch, num_classes), float32 (float64 of a float64 network).

        Raises:
            ValueError: A level without a timestep, or a sample that `forward` refuses.
        """
        check_that(level.timestep is not None, "the level's timestep", None, "that of the process")
        sample = at_least_float32(sample)
        scaled = broadcast(level.input_scale, sample) * sample
        factor = _HALF_GRADIENT_FACTOR if self.dtype == torch.float16 else 1.0
        logits = self(scale_gradient(scaled, 1 / factor), level.timestep)
        return scale_gradient(at_least_float32(logits), factor)

    def _check_sample(self, sample: Tensor) -> None:
        size = self.config.sample_size
        sides = (size, size) if self.config.pool == "attention" else ("height", "width")
        check_tensor("sample", sample, ("batch", self.config.in_channels, *sides))

    def _embed(self, timestep: Tensor | float, sample: Tensor) -> Tensor:
        timesteps = torch.as_tensor(timestep)
        fits = timesteps.ndim < 2 and timesteps.numel() in (1, len(sample))
        check_that(fits, "timestep", timesteps, f"() or ({len(sample)},)")
        timesteps = timesteps.float().to(sample.device).expand(len(sample))
        return self.time_embedding(self.time_proj(timesteps).to(self.dtype))


def _check_options(types: Sequence[str], downsample: str, shift: str, pool: str, levels: int) -> None:
    allowed = f"{levels} types, as many as block_out_channels"
    check_that(len(types) == levels, "down_block_types", types, allowed)
    for name, given, allowed in (
        *(("down_block_types", given, BLOCK_TYPES) for given in types),
        ("downsample_type", downsample, DOWNSAMPLE_TYPES),
        ("resnet_time_scale_shift", shift, TIME_SCALE_SHIFTS),
        ("pool", pool, POOLS),
    ):
        check_choice(name, given, allowed)


def _sum_of_widths(channels: Sequence[int], layers: int) -> int:
    """The channels of all outputs: of the first convolution, the blocks, the downsamplers, the middle."""
    return channels[0] + layers * sum(channels) + sum(channels[:-1]) + channels[-1]


def _head(pool: str, channels: int, classes: int, groups: int, size: int, head_dim: int) -> nn.Module:
    if pool == "attention":
        return AttentionPool2d(channels, size, head_dim, classes)
    if pool == "adaptive":
        return nn.Linear(channels, classes)
    between = [nn.ReLU()] if pool == "spatial" else [nn.GroupNorm(groups, _SPATIAL_FEATURES), nn.SiLU()]
    first, second = nn.Linear(channels, _SPATIAL_FEATURES), nn.Linear(_SPATIAL_FEATURES, classes)
    return nn.Sequential(first, *between, second)
