"""Tiny upsamplers and cascades: grey pictures, four times larger."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from tiny import tiny_components

from guided_diffusers import CascadePipeline, GuidedDDIMScheduler, TextToImagePipeline, UpsamplePipeline


def tiny_upsampler_unet(**overrides: Any) -> UNet2DModel:
    """It is told the level of a grey small picture by `class_labels`."""
    config = {
        "sample_size": 64,
        "in_channels": 2,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "add_attention": False,
        "class_embed_type": "timestep",
    }
    return UNet2DModel(**{**config, **overrides}).eval()


def tiny_upsampler(seed: int = 0, **overrides: Any) -> UpsamplePipeline:
    """Pixels, of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "unet": tiny_upsampler_unet(),
            "scheduler": GuidedDDIMScheduler(prediction_type="v_prediction"),
            "low_res_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "scale": 4,
            "num_inference_steps": 3,
        }
        pipeline = UpsamplePipeline(**{**parts, **overrides})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_cascade(**overrides: Any) -> CascadePipeline:
    """Text to grey pictures of 16x16, and of those 64x64."""
    base = TextToImagePipeline(**tiny_components(), requires_safety_checker=False, default_guidance=2.0)
    cascade = CascadePipeline(
        [base, tiny_upsampler(image_size=64)], **{"num_inference_steps": 2, **overrides}
    )
    cascade.set_progress_bar_config(disable=True)
    return cascade
