"""Pipelines of diffusers with tiny transformers, as training leaves them: by text, and by class."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny import CONTEXT, LATENT, WIDTH, tiny_autoencoder, tiny_text_encoder, tiny_tokenizer
from transformers import CLIPTextModelWithProjection

from guided_diffusers.pipelines.default_guidance import keep_way_of_drawing

SIZES = {"sample_size": LATENT[1], "patch_size": 2, "in_channels": LATENT[0], "out_channels": LATENT[0]}
SIZES |= {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}


def stock_by_text(scale: float = 2.0) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline of flow matching, without its T5; its layers say something."""
    torch.manual_seed(0)
    tokenizer, vae = tiny_tokenizer(), tiny_autoencoder()
    vae.register_to_config(shift_factor=0.0)
    encoders = [CLIPTextModelWithProjection(tiny_text_encoder(tokenizer).config).eval() for _ in "12"]
    pooled = 2 * encoders[0].config.projection_dim
    widths = {"joint_attention_dim": 2 * WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": pooled}
    parts: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(**SIZES, **widths, pos_embed_max_size=8).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
        "vae": vae,
        **{"text_encoder": encoders[0], "text_encoder_2": encoders[1], "text_encoder_3": None},
        **{"tokenizer": tokenizer, "tokenizer_2": tokenizer, "tokenizer_3": None},
    }
    pipeline = StableDiffusion3Pipeline(**parts)
    keep_way_of_drawing(pipeline, scale, max_sequence_length=CONTEXT)
    return pipeline


def stock_by_class(scale: float = 2.0) -> DiTPipeline:
    """A DiTPipeline of ten classes without names."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(**SIZES, norm_num_groups=4).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # some begin as 0, and would hear no class
    pipeline = DiTPipeline(transformer, tiny_autoencoder(), DDIMScheduler(clip_sample=False))
    keep_way_of_drawing(pipeline, scale)
    return pipeline
