"""Tiny, real components: every class is the one users have, with few and random weights."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from guided_diffusers import TextToImagePipeline, VariationalAutoencoder

WIDTH = 8
CONTEXT = 24


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter, 24 tokens of context."""
    symbols = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *symbols])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def tiny_unet(**overrides: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "norm_num_groups": 2,
            **overrides,
        }
    ).eval()


def tiny_autoencoder(**overrides: Any) -> VariationalAutoencoder:
    return VariationalAutoencoder(
        **{
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (4, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": 4,
            "norm_num_groups": 2,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 0.5, 1.0, 2.0],
            **overrides,
        }
    ).eval()


def stable_diffusion_schedule(cls: type, **overrides: Any) -> Any:
    """A scheduler with Stable Diffusion's betas."""
    return cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **overrides)


def tiny_components(**overrides: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    return {
        "vae": tiny_autoencoder(),
        "text_encoder": tiny_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": tiny_unet(),
        "scheduler": stable_diffusion_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False),
        **overrides,
    }


@pytest.fixture
def components() -> dict[str, Any]:
    return tiny_components()


@pytest.fixture
def pipeline(components: dict[str, Any]) -> TextToImagePipeline:
    pipe = TextToImagePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe
