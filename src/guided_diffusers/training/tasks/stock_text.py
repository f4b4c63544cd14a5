"""The text encoders of a pipeline of diffusers with their tokenizers, loaded or new; what it draws with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from guided_diffusers.core.checks import check_that
from guided_diffusers.stock.prompted import Prompted
from guided_diffusers.store.checkpoints import pipeline_source
from guided_diffusers.training.data.captions import text_config_for
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.objective import learned_variance
from guided_diffusers.training.tasks.text import TextConfig, load_text, make_tokenizer, own_tokenizer


def text_encoders(row: Prompted, parts: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The text encoders that there are, by their names in the pipeline."""
    return {name: parts[name] for name in row.encoders if parts[name] is not None}


def text_parts(
    row: Prompted, text: TextConfig, captions: list[str], training: TrainingConfig, base: bool
) -> dict[str, Any]:
    """Text encoders and tokenizers by their names in a pipeline, loaded or new; a T5 may be None.

    Args:
        row: which the pipeline has.
        text: where they are from.
        captions: of the data.
        training: the engine's configuration.
        base: as of `make_text`.
    """
    parts: dict[str, Any] = {}
    if text.pretrained is None:
        tokenizer = make_tokenizer(text, captions, training)
        for name, kind in row.encoders.items():
            parts[name] = new_encoder(kind, tokenizer, text.model, [*row.encoders.values()])
            parts[tokenizer_of(name)] = tokenizer
        return parts
    for name in row.encoders:
        source = {"pretrained": text.sources[name], "subfolders": False} if name in text.sources else {}
        folder = Path(pipeline_source(text.pretrained))
        lacking = not source and folder.is_dir() and not (folder / name).is_dir() and text.subfolders
        if lacking and name == "text_encoder_3":  # StableDiffusion3Pipeline does without
            parts[name] = parts[tokenizer_of(name)] = None
            continue
        tokenizer, parts[name] = load_text(dataclasses.replace(text, component=name, **source))
        parts[tokenizer_of(name)] = tokenizer
    parts["tokenizer"] = own_tokenizer(parts["tokenizer"], text.pretrained, captions, training, base)
    return parts


def tokenizer_of(name: str) -> str:
    """The name of a text encoder's tokenizer."""
    return name.replace("text_encoder", "tokenizer")


def new_encoder(
    kind: str, tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any], beside: Sequence[str]
) -> PreTrainedModel:
    """A new text encoder of a class of transformers, with the sizes that a CLIP has by `text.model`.

    A T5 beside two CLIPs is as wide as both.
    """
    clip = text_config_for(tokenizer, **model)
    ids = {f"{name}_token_id": getattr(clip, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    width, heads = clip.hidden_size, clip.num_attention_heads
    if kind == "T5EncoderModel":
        width *= max(beside.count("CLIPTextModelWithProjection"), 1)
        sizes = {"d_model": width, "d_kv": width // heads, "d_ff": clip.intermediate_size}
        layers = {"num_layers": clip.num_hidden_layers, "num_heads": heads}
        config = transformers.T5Config(vocab_size=clip.vocab_size, **sizes, **layers, **ids)
    elif kind == "Gemma2Model":
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = {name: getattr(clip, name) for name in names}
        config = transformers.Gemma2Config(**sizes, num_key_value_heads=heads, head_dim=width // heads, **ids)
    else:
        config = clip
    return getattr(transformers, kind)(config)


def check_draws(row: Prompted, scheduler: Any, vae: nn.Module) -> None:
    """Raise ValueError where a pipeline of diffusers cannot draw with a scheduler or an autoencoder."""
    name, kind = row.pipeline, type(scheduler).__name__
    instead = "DPMSolverMultistepScheduler (prediction_type flow_prediction, use_flow_sigmas true)"
    if row.prepares and not hasattr(scheduler, "scale_model_input"):
        raise ValueError(
            f"scheduler is {kind}, which has no scale_model_input, and {name} calls it; for flow matching "
            f"use {instead}"
        )
    if not row.prepares and float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1:
        raise ValueError(f"scheduler is {kind}, whose noise {name} does not scale; use {instead}")
    if not row.learned and learned_variance(scheduler):
        raise ValueError(f"variance_type is {scheduler.config.variance_type!r}, which {name} does not read")
    allowed = row.vae or "VariationalAutoencoder or AutoencoderKL"
    fits = type(vae).__name__ in ((row.vae,) if row.vae else ("VariationalAutoencoder", "AutoencoderKL"))
    check_that(fits, f"autoencoder of {name}", vae, allowed)
