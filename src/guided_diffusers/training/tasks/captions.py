"""The captions of a data set as what a denoiser is told: their text encoder and their embeddings."""

from __future__ import annotations

from typing import Any

import torch

from guided_diffusers.core.condition import sees_padding
from guided_diffusers.training.data.cache import cached_embeddings
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.conditioning import Captions, DrawingConfig
from guided_diffusers.training.tasks.encoded_text import EncodedText, FrozenText, JointText
from guided_diffusers.training.tasks.text import TextConfig, make_text


def make_captions(
    data: ImageTextDataset,
    text: TextConfig,
    training: TrainingConfig,
    vae: Any,
    device: torch.device,
    *,
    base: bool,
    dropout: float,
    drawing: DrawingConfig,
) -> Captions:
    """Tokenizer, text encoder and, where that is frozen, the embeddings of all captions.

    Args:
        data: images with captions.
        text: which text encoder.
        training: the engine's configuration.
        vae: the autoencoder of the pipeline that comes of it.
        device: that is to encode.
        base: as of `make_text`.
        dropout: the share of captions that becomes the empty prompt.
        drawing: what to draw.
    """
    texts = texts_of(data)
    tokenizer, encoder = make_text(text, texts, training, base=base)
    joint = text.encoder == "joint"
    return Captions(
        components={"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer},
        captions=lambda indices, positions: data.captions(indices, positions, training.seed),
        text=encoded_text(texts, tokenizer, encoder, joint, device, data.config.cache_dir),
        dropout=dropout,
        drawing=drawing,
        joint=joint,
    )


def texts_of(data: ImageTextDataset) -> list[str]:
    """The empty caption, and those of a data set."""
    return ["", *(caption for caption in data.all_captions() if caption)]


def encoded_text(
    texts: list[str], tokenizer: Any, encoder: Any, joint: bool, device: torch.device, cache_dir: str | None
) -> EncodedText:
    """Captions, encoded at every step where `joint`, else once."""
    if joint:
        return JointText(tokenizer, texts, masked=not sees_padding(encoder))
    encoder.requires_grad_(False).eval()
    embeddings = cached_embeddings(encoder.to(device), tokenizer, texts, cache_dir)
    return FrozenText(texts, embeddings)
