"""Every pipeline and every model of the package, tiny and real, by the name of its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny import tiny_autoencoder, tiny_components, tiny_tokenizer, tiny_unet
from tiny_classifier import NAMES, tiny_image_unet
from tiny_clip import tiny_clip
from tiny_upsampler import tiny_cascade, tiny_upsampler

from guided_diffusers import (
    ADMUNet2DModel,
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    ImageClassifier,
    ImagePipeline,
    NoiseAwareClassifier,
    PatchedUNet2DModel,
    TextToImagePipeline,
    VAEPipeline,
)
from guided_diffusers.schedulers import describe_process

BLOCKS = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def scheduler() -> GuidedDDIMScheduler:
    """Of 1000 timesteps, without clipping."""
    return GuidedDDIMScheduler(clip_sample=False)


def text_to_image(**overrides: Any) -> TextToImagePipeline:
    """Grey images of 16x16; with a weak network, which its default guidance does not use."""
    weak = tiny_unet()
    options = {"default_guidance": 2.0, "requires_safety_checker": False, "weak_unet": weak}
    return TextToImagePipeline(**tiny_components(**overrides), **options)


def images(**overrides: Any) -> ImagePipeline:
    """Grey images of 8x8 of three classes."""
    return ImagePipeline(tiny_image_unet(num_class_embeds=3, **overrides), scheduler())


def noise_aware_classifier(**overrides: Any) -> NoiseAwareClassifier:
    """Of grey 8x8 images and the process of `scheduler()`."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "num_classes": 3,
        "attention_head_dim": 4,
        "pool": "adaptive",
        "id2label": NAMES,
        "process": describe_process(scheduler()),
        **BLOCKS,
    }
    return NoiseAwareClassifier(**{**config, **overrides}).eval()


def classifier_guided(**overrides: Any) -> ClassifierGuidedPipeline:
    """Grey images of 8x8 of three classes, by a denoiser with a null class."""
    unet = tiny_image_unet(num_class_embeds=4)
    return ClassifierGuidedPipeline(unet, scheduler(), noise_aware_classifier(), **overrides)


def classifier_guided_text_to_image(**overrides: Any) -> ClassifierGuidedTextToImagePipeline:
    """Grey images of 8x8."""
    clip = tiny_clip(process=describe_process(scheduler()))
    return ClassifierGuidedTextToImagePipeline(
        tiny_image_unet(), scheduler(), clip, tiny_tokenizer(), **overrides
    )


def autoencoders(**overrides: Any) -> VAEPipeline:
    """Grey images of 16x16, a map of 2 latent channels."""
    return VAEPipeline(tiny_autoencoder(**overrides))


def image_classifier() -> ImageClassifier:
    """Of grey images."""
    blocks = ("DownEncoderBlock2D",) * 2
    return ImageClassifier(num_classes=3, in_channels=1, down_block_types=blocks, **BLOCKS).eval()


def adm_unet() -> ADMUNet2DModel:
    """With another head width at each level."""
    return ADMUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 2),
        **BLOCKS,
    ).eval()


def patched_unet() -> PatchedUNet2DModel:
    """Of grey images of 8x8, on patches of 2x2."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "patch_size": 2, "add_attention": False}
    return PatchedUNet2DModel(**sizes, **blocks, **BLOCKS).eval()


PIPELINES: dict[str, Callable[..., Any]] = {
    "TextToImagePipeline": text_to_image,
    "ImagePipeline": images,
    "ClassifierGuidedPipeline": classifier_guided,
    "ClassifierGuidedTextToImagePipeline": classifier_guided_text_to_image,
    "VAEPipeline": autoencoders,
    "UpsamplePipeline": lambda **overrides: tiny_upsampler(num_inference_steps=2, **overrides),
    "CascadePipeline": tiny_cascade,
}
MODELS: dict[str, Callable[..., Any]] = {
    "VariationalAutoencoder": tiny_autoencoder,
    "NoiseAwareClassifier": noise_aware_classifier,
    "ImageClassifier": image_classifier,
    "NoiseAwareCLIP": lambda: tiny_clip(process=describe_process(scheduler())),
    "ADMUNet2DModel": adm_unet,
    "PatchedUNet2DModel": patched_unet,
}


def made(name: str, **overrides: Any) -> Any:
    """A pipeline or model by the name of its class; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = {**PIPELINES, **MODELS}[name](**overrides)
    if name in PIPELINES:
        subject.set_progress_bar_config(disable=True)
    return subject
