"""Trains CLIP: accelerate launch training/train_clip.py --config FILE.yaml [--key value].

On images with captions: transformers' CLIPModel; or, with `noise_aware`, a NoiseAwareCLIP of noised pixels or
latents, by which ClassifierGuidedTextToImagePipeline steers a denoiser that knows no text. The folder
`final/` of the run holds the model with averaged weights, its tokenizer and its figures on held-out images.
Running the same command again resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from guided_diffusers.models import NoiseAwareClassifier, NoiseAwareCLIP
from guided_diffusers.models.transformers_models import load_fitting, load_tokenizer
from guided_diffusers.schedulers import describe_process, process_of
from guided_diffusers.training.data.captions import text_config_for
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import Images, image_arguments, load_autoencoder
from guided_diffusers.training.data.stream import open_data, open_held_out
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks import clip as cp
from guided_diffusers.training.tasks.classifier import ValidationConfig
from guided_diffusers.training.tasks.text import make_tokenizer, own_tokenizer, settle_context


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A new tokenizer, trained on the captions, and a new text encoder."""

    vocabulary_size: int = option(1024, "of the tokenizer: an upper limit")
    context_length: int = option(77, "in tokens, the two special ones included")
    model: dict[str, Any] = arguments("CLIPTextConfig's arguments", CLIPTextConfig)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Train CLIP, of images clean or noised."""

    training: TrainingConfig
    data: DataConfig
    noise_aware: bool = option(False, "a NoiseAwareCLIP of q(x_t); else transformers' CLIPModel")
    autoencoder: str | None = option(None, "its latents: a folder, fashion-32 or Hub id; null: pixels")
    pretrained: str | None = option(None, "folder or Hub id of a model with its tokenizer; null: new ones")
    projection_dim: int = option(64, "of the space in which images and texts meet")
    text: TextConfig = field(default_factory=TextConfig)
    image: dict[str, Any] = arguments(
        "CLIPVisionConfig's arguments; NoiseAwareClassifier's", CLIPVisionConfig, NoiseAwareClassifier
    )
    scheduler: str = option("GuidedDDPMScheduler", "class of ours or of diffusers: the noise process")
    scheduler_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    noise: cp.NoiseConfig = field(default_factory=cp.NoiseConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        """Check that latents are a noise-aware model's."""
        if self.autoencoder is not None and not self.noise_aware:
            raise ValueError("autoencoder is of a noise-aware model: CLIPModel sees pixels")


def make_clip(config: ClipConfig, captions: list[str], shape: tuple[int, ...], process: Any) -> Any:
    """The model, loaded or new, and its tokenizer; sizes that the data fix need not be given."""
    if config.pretrained is not None:
        if config.noise_aware:
            clip = NoiseAwareCLIP.from_pretrained(config.pretrained)
            text = clip.text_encoder.config
        else:
            clip = load_fitting(CLIPModel, config.pretrained, use_safetensors=True)
            text = clip.config.text_config
        tokenizer = load_tokenizer(config.pretrained)
        settle_context(tokenizer, text, config.text.context_length)
        return clip.float(), own_tokenizer(tokenizer, config.pretrained, captions, config.training, base=True)
    tokenizer = make_tokenizer(config.text, captions, config.training)
    text, width = text_config_for(tokenizer, **config.text.model), config.projection_dim
    if config.noise_aware:
        sizes = {"sample_size": shape[-1], "in_channels": shape[0], **config.image}
        return NoiseAwareCLIP(text.to_diff_dict(), sizes, width, process=process), tokenizer
    vision = CLIPVisionConfig(**{"image_size": shape[-1], "num_channels": shape[0], **config.image})
    both = {"text_config": text.to_diff_dict(), "vision_config": vision.to_diff_dict()}
    return CLIPModel(CLIPConfig(**both, projection_dim=width)), tokenizer


def make_task(config: ClipConfig, device: torch.device) -> cp.ClipTask:
    """Data, networks, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    vae = None if vae is None else vae.to(device)
    data = open_data(config.data, config.training.seed)
    held_out, captions = open_held_out(config.data, config.validation.split), data.all_captions()
    images = image_arguments(data, vae)
    scheduler = make_scheduler(config.scheduler, config.scheduler_arguments) if config.noise_aware else None
    described = None if scheduler is None else describe_process(scheduler)
    clip, tokenizer = make_clip(config, captions, images["shape"], described)
    if config.noise_aware:
        clip.check_scheduler(scheduler)
    seed = config.training.seed
    return cp.ClipTask(
        clip.to(device),
        tokenizer,
        cp.CaptionedImages(captions=lambda rows, positions: data.captions(rows, positions, seed), **images),
        captions,
        Images(**image_arguments(held_out, vae)),
        held_out.first_captions(),
        config.noise,
        config.validation,
        config.training,
        None if scheduler is None else process_of(scheduler),
    )


if __name__ == "__main__":
    run_script(ClipConfig, make_task)
