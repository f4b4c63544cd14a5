"""ADM checkpoints, denoisers and noise-aware classifiers, to UNet2DModel and NoiseAwareClassifier.

The published network is a list of blocks (`input_blocks`, `middle_block`, `output_blocks`), each a residual
block with perhaps an attention or a resampling one after it; here blocks are grouped by resolution. The
layers are the same, and so are the outputs (to 1e-5 in float32).

An upsampler sees the small image, scaled up bilinearly to the large size, beside the sample: it has 6 input
channels and is called as `unet(torch.cat([x_t, upsampled], dim=1), timestep, class_labels)`, which
`UpsamplePipeline(unet, scheduler, scale=4)` does.

With `learn_sigma` the output has 6 channels: epsilon, and the interpolation of the learned range of the
variance, which `GuidedDDPMScheduler(variance_type="learned_range")` reads.

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from guided_diffusers.convert.flags import (
    Architecture,
    classifier_architecture,
    process_of_flags,
    unet_architecture,
)
from guided_diffusers.convert.rename import Rename, fused, layer, load_renamed
from guided_diffusers.models.adm_unet import ADMUNet2DModel
from guided_diffusers.models.noise_aware_classifier import NoiseAwareClassifier

NORM_GROUPS, NORM_EPS = 32, 1e-5  # of the published code; no flags


def adm_unet(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> UNet2DModel:
    """A published ADM denoiser as a diffusers model, in evaluation mode.

    Args:
        state_dict: The checkpoint, under its original names. Its tensors are copied; on the meta device the
            model is there too.
        config: The published flags (create_model's, and the diffusion's): image_size, num_channels,
            num_res_blocks, channel_mult, attention_resolutions, num_heads, num_head_channels, class_cond,
            learn_sigma, use_scale_shift_norm, resblock_updown, use_new_attention_order, ...; large_size and
            small_size instead of image_size for an upsampler. What is left out has the published default.
            `num_classes` (1000) may be another for retrained models.

    Returns:
        A `UNet2DModel`, or, where the head width varies by level (`num_heads`) or the first level is not of
        the base width (512 pixels), an `ADMUNet2DModel`.

    Raises:
        ValueError: A name that is no flag, or a checkpoint that does not fit: missing, unexpected or
            differently shaped tensors.
    """
    plan = unet_architecture(config)
    with torch.device("meta"):
        model = _unet(plan)
    load_renamed(model, [*_encoder(plan), *_decoder(plan)], state_dict)
    return model.eval()


def adm_classifier(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> NoiseAwareClassifier:
    """A published noise-aware classifier, in evaluation mode.

    Args:
        state_dict: The checkpoint, under its original names; its tensors are copied.
        config: The published flags (image_size, classifier_width, classifier_depth, classifier_pool, ...;
            those of the denoiser it guides may be among them), or, where there is `model_channels`, the
            names of the constructor (out_channels, num_res_blocks, attention_resolutions as rates, pool,
            ...). The diffusion's flags say for which process it was trained.

    Raises:
        ValueError: A name that is no flag, or a checkpoint that does not fit.
    """
    plan = classifier_architecture(config)
    with torch.device("meta"):
        model = NoiseAwareClassifier(
            sample_size=plan.image_size,
            in_channels=plan.in_channels,
            num_classes=plan.out_channels,
            block_out_channels=plan.widths,
            layers_per_block=plan.layers,
            down_block_types=tuple(f"{'Attn' if attends else ''}DownBlock2D" for attends in plan.attends),
            downsample_type="resnet" if plan.residual_resampling else "conv",
            attention_head_dim=_head_dim(plan),
            dropout=plan.dropout,
            norm_num_groups=NORM_GROUPS,
            norm_eps=NORM_EPS,
            resnet_time_scale_shift="scale_shift" if plan.scale_shift else "default",
            timestep_channels=plan.model_channels,
            time_embedding_dim=4 * plan.model_channels,
            pool=plan.pool,
            process=process_of_flags(config),
        )
    load_renamed(model, [*_encoder(plan), *_pooling(plan)], state_dict)
    return model.eval()


def _unet(plan: Architecture) -> UNet2DModel:
    resampling = "Resnet" if plan.residual_resampling else ""
    plain_down = "ResnetDownsampleBlock2D" if resampling else "DownBlock2D"
    plain_up = "ResnetUpsampleBlock2D" if resampling else "UpBlock2D"
    attends, head_dim = plan.attends, _head_dim(plan)
    arguments: dict[str, Any] = {
        "sample_size": plan.image_size,
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "down_block_types": tuple("AttnDownBlock2D" if attend else plain_down for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else plain_up for attend in attends[::-1]),
        "block_out_channels": plan.widths,
        "layers_per_block": plan.layers,
        "downsample_type": resampling.lower() or "conv",
        "upsample_type": resampling.lower() or "conv",
        "dropout": plan.dropout,
        "attention_head_dim": head_dim,
        "norm_num_groups": NORM_GROUPS,
        "attn_norm_num_groups": NORM_GROUPS,  # the middle block's: none by default with scale_shift
        "norm_eps": NORM_EPS,
        "resnet_time_scale_shift": "scale_shift" if plan.scale_shift else "default",
        "num_class_embeds": plan.num_classes,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if isinstance(head_dim, int) and plan.widths[0] == plan.model_channels:
        return UNet2DModel(**arguments)
    sinusoids = {"timestep_channels": plan.model_channels, "time_embedding_dim": 4 * plan.model_channels}
    return ADMUNet2DModel(**arguments, **sinusoids)


def _head_dim(plan: Architecture) -> int | tuple[int, ...]:
    return plan.head_channels if plan.head_channels != -1 and plan.head_widths else plan.head_widths


def _encoder(plan: Architecture) -> Iterator[Rename]:
    """What denoiser and classifier share: the timestep, the encoder half and the middle."""
    yield from layer("time_embed.0", "time_embedding.linear_1")
    yield from layer("time_embed.2", "time_embedding.linear_2")
    yield from layer("input_blocks.0.0", "conv_in")
    index, last = 1, len(plan.widths) - 1
    for level, attends in enumerate(plan.attends):
        for number in range(plan.layers):
            yield from _residual(f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{number}")
            if attends:
                target = f"down_blocks.{level}.attentions.{number}"
                yield from _attention(f"input_blocks.{index}.1", target, _heads(plan, level))
            index += 1
        if level < last:
            target = f"down_blocks.{level}.downsamplers.0"
            yield from _resampling(plan, f"input_blocks.{index}.0", target, "op")
            index += 1
    yield from _residual("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0", _heads(plan, last))
    yield from _residual("middle_block.2", "mid_block.resnets.1")


def _decoder(plan: Architecture) -> Iterator[Rename]:
    yield Rename(source="label_emb.weight", targets=("class_embedding.weight",))
    index = 0
    for block, level in enumerate(reversed(range(len(plan.widths)))):
        for number in range(plan.layers + 1):
            place = 1
            yield from _residual(f"output_blocks.{index}.0", f"up_blocks.{block}.resnets.{number}")
            if plan.attends[level]:
                target = f"up_blocks.{block}.attentions.{number}"
                yield from _attention(f"output_blocks.{index}.1", target, _heads(plan, level))
                place += 1
            if level > 0 and number == plan.layers:
                target = f"up_blocks.{block}.upsamplers.0"
                yield from _resampling(plan, f"output_blocks.{index}.{place}", target, "conv")
            index += 1
    yield from layer("out.0", "conv_norm_out")
    yield from layer("out.2", "conv_out")


def _pooling(plan: Architecture) -> Iterator[Rename]:
    if plan.pool in ("attention", "adaptive"):
        yield from layer("out.0", "conv_norm_out")
    if plan.pool == "attention":
        pool = "out.2"
        yield Rename(source=f"{pool}.positional_embedding", targets=("head.positional_embedding",))
        yield from fused(f"{pool}.qkv_proj", "head", heads=0)  # the new order, in every classifier
        yield from layer(f"{pool}.c_proj", "head.to_out", dimensions=1)
    elif plan.pool == "adaptive":
        yield from layer("out.3", "head", dimensions=2)
    else:
        for place in (0, 1, 2, 3):
            yield from layer(f"out.{place}", f"head.{place}")


def _heads(plan: Architecture, level: int) -> int:
    """How many heads' rows lie head by head; 0 in the new order."""
    return 0 if plan.new_order else plan.widths[level] // plan.head_widths[level]


def _residual(source: str, target: str) -> Iterator[Rename]:
    for theirs, ours in (
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("skip_connection", "conv_shortcut"),
    ):
        yield from layer(f"{source}.{theirs}", f"{target}.{ours}")


def _attention(source: str, target: str, heads: int) -> Iterator[Rename]:
    yield from layer(f"{source}.norm", f"{target}.group_norm")
    yield from fused(f"{source}.qkv", target, heads)
    yield from layer(f"{source}.proj_out", f"{target}.to_out.0", dimensions=1)


def _resampling(plan: Architecture, source: str, target: str, convolution: str) -> Iterator[Rename]:
    if plan.residual_resampling:
        yield from _residual(source, target)
    else:
        yield from layer(f"{source}.{convolution}", f"{target}.conv")
