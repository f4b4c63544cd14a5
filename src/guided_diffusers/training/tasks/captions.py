"""The captions of a data set as what a denoiser is told: their text encoder and their embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.condition import encode_text, sees_padding, tokenize
from guided_diffusers.training.data.cache import cached_embeddings, fingerprint
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.precomputed import EMBEDDINGS
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.conditioning import Captions, DrawingConfig
from guided_diffusers.training.tasks.encoded_text import EncodedText, FrozenText, JointText, PrecomputedText
from guided_diffusers.training.tasks.text import TextConfig, make_text


def make_captions(
    data: ImageTextDataset | ImageTextStream,
    text: TextConfig,
    training: TrainingConfig,
    vae: Any,
    device: torch.device,
    *,
    base: bool,
    dropout: float,
    drawing: DrawingConfig,
) -> Captions:
    """Tokenizer, text encoder and, where that is frozen, the embeddings of all captions; not of a stream.

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
    joint, streamed = text.encoder == "joint", isinstance(data, ImageTextStream)
    captions = partial(data.captions, seed=training.seed)
    made_by = data.precomputed and data.precomputed.text_encoder if streamed else None
    if made_by is not None and not joint:
        encoded = precomputed_text(made_by, text, tokenizer, encoder.to(device))
        captions = partial(captions, column=EMBEDDINGS)
    else:
        known = None if streamed else texts
        encoded = encoded_text(known, tokenizer, encoder, joint, device, data.config.cache_dir)
    return Captions(
        components={"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer},
        captions=captions,
        text=encoded,
        dropout=dropout,
        drawing=drawing,
        joint=joint,
    )


def texts_of(data: ImageTextDataset | ImageTextStream) -> list[str]:
    """The empty caption, and those of a data set; of a stream, of a sample."""
    return ["", *(caption for caption in data.all_captions() if caption)]


def encoded_text(
    texts: list[str] | None,
    tokenizer: Any,
    encoder: Any,
    joint: bool,
    device: torch.device,
    cache_dir: str | None,
) -> EncodedText:
    """Captions, encoded at every step where `joint` or not all are known (None), else once."""
    if not joint:
        encoder.requires_grad_(False).eval().to(device)
    if joint or texts is None:
        return JointText(tokenizer, texts, masked=not sees_padding(encoder))
    return FrozenText(texts, cached_embeddings(encoder, tokenizer, texts, cache_dir))


@torch.no_grad()
def precomputed_text(made_by: str, text: TextConfig, tokenizer: Any, encoder: Any) -> PrecomputedText:
    """The captions of a stream with embeddings, which must be those of a text encoder that is frozen.

    Args:
        made_by: the fingerprint of the text encoder that made them.
        text: which text encoder.
        tokenizer: its tokenizer.
        encoder: itself, on a device.
    """
    encoder.requires_grad_(False).eval()
    right = fingerprint(encoder) == made_by
    check_that(right, "text.pretrained", text.pretrained, "what the captions were precomputed with")
    ids, mask = (part.to(next(encoder.parameters()).device) for part in tokenize(tokenizer, [""]))
    return PrecomputedText(encode_text(encoder, ids, mask).cpu()[0])
