"""What tests share: no network, and a text-to-image pipeline that is real and tiny."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

# Frozen when huggingface_hub is first imported, so before that.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def make_tokenizer(folder: Path) -> Any:
    """A CLIPTokenizer of letters, 16 tokens long."""
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*special, *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def make_components(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Stable Diffusion's components with random weights: 16x16 grey images, 2-channel 8x8 latents."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from guided_diffusers import GuidedDDIMScheduler, VariationalAutoencoder

    tokenizer = make_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = VariationalAutoencoder(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            norm_num_groups=4,
            latent_channels=2,
            sample_size=16,
            latents_mean=(0.1, -0.2),
            latents_std=(0.9, 1.3),
        )
        text_encoder = CLIPTextModel(text)
    scheduler = GuidedDDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
        "scheduler": scheduler,
    }


@pytest.fixture
def tiny_pipeline(tmp_path: Path) -> Any:
    """A TextToImagePipeline of the tiny components, its own in each test."""
    from guided_diffusers import TextToImagePipeline

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    return TextToImagePipeline(**make_components(folder), requires_safety_checker=False, default_guidance=2.0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny pipeline was saved; read it only."""
    from guided_diffusers import TextToImagePipeline

    folder = tmp_path_factory.mktemp("tiny")
    components = make_components(tmp_path_factory.mktemp("tokenizer"))
    pipeline = TextToImagePipeline(**components, requires_safety_checker=False, default_guidance=2.0)
    pipeline.save_pretrained(folder)
    return folder
