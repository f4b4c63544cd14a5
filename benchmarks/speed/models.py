"""Stable Diffusion components with random weights, of the sizes that the speed figures are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPTS = ["a photo of an ankle boot", "a photo of a bag", "a photo of a coat", "a photo of a dress"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A text-to-image model: the UNet's widths and residual layers a level, latent and text size."""

    widths: tuple[int, ...]
    layers: int
    latent_size: int
    text_width: int
    vae_widths: tuple[int, ...] = (16, 32, 64)
    image_channels: int = 1
    tokens: int = 24


SIZES = {
    "tiny": Size(widths=(32, 32), layers=1, latent_size=8, text_width=32, vae_widths=(8, 8)),
    "4M": Size(widths=(64, 128), layers=1, latent_size=8, text_width=128),
    "27M": Size(widths=(64, 192, 288), layers=2, latent_size=16, text_width=256),
    "27M-256": Size(  # the same denoiser on latents of 256 pixels, by Stable Diffusion's factor 8
        widths=(64, 192, 288),
        layers=2,
        latent_size=32,
        text_width=256,
        vae_widths=(32, 64, 128, 128),
        image_channels=3,
    ),
    "860M": Size(  # Stable Diffusion 1's UNet, at its 512 x 512 pixels
        widths=(320, 640, 1280, 1280),
        layers=2,
        latent_size=64,
        text_width=768,
        vae_widths=(128, 256, 512, 512),
        image_channels=3,
        tokens=77,
    ),
}


def random_components(size: Size, seed: int = 0) -> dict[str, Any]:
    """What StableDiffusionPipeline takes, in evaluation mode; its random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = character_tokenizer(size.tokens)
        components = {
            "vae": _vae(size),
            "text_encoder": _text_encoder(size, tokenizer),
            "tokenizer": tokenizer,
            "unet": _unet(size),
            "scheduler": DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type="v_prediction",
            ),
        }
    for name in ("vae", "text_encoder", "unet"):
        components[name].eval()
    return {**components, "safety_checker": None, "feature_extractor": None, "image_encoder": None}


def character_tokenizer(length: int = 24) -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token a byte; prompts are cut to `length` tokens."""
    printable = [chr(code) for code in range(33, 127)]
    endings = [character + "</w>" for character in printable]
    tokens = [*printable, *endings, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def _unet(size: Size) -> UNet2DConditionModel:
    levels = len(size.widths)
    plain = 0 if levels < 3 else 1  # the deepest of three or more levels has no cross-attention
    return UNet2DConditionModel(
        sample_size=size.latent_size,
        block_out_channels=size.widths,
        layers_per_block=size.layers,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - plain) + ("DownBlock2D",) * plain,
        up_block_types=("UpBlock2D",) * plain + ("CrossAttnUpBlock2D",) * (levels - plain),
        cross_attention_dim=size.text_width,
    )


def _vae(size: Size) -> AutoencoderKL:
    levels = len(size.vae_widths)
    return AutoencoderKL(
        in_channels=size.image_channels,
        out_channels=size.image_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_widths,
        norm_num_groups=8,
        sample_size=size.latent_size * 2 ** (levels - 1),
        scaling_factor=1.0,
    )


def _text_encoder(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
