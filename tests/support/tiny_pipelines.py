"""Every pipeline of the package, tiny and real, with arguments of a short call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny import tiny_autoencoder, tiny_components, tiny_tokenizer
from tiny_classifier import tiny_image_unet, tiny_noise_aware_classifier
from tiny_clip import WORDS, tiny_clip

from guided_diffusers import (
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ImagePipeline,
    TextToImagePipeline,
    VAEPipeline,
)
from guided_diffusers.schedulers import describe_process

STEPS = 6
PROMPTS = ["a boot", "a bag"]


def text_to_image(**components: Any) -> TextToImagePipeline:
    return TextToImagePipeline(
        **tiny_components(**components), requires_safety_checker=False, default_guidance=2.0
    )


def classifier_guided() -> ClassifierGuidedPipeline:
    scheduler = GuidedDDIMScheduler(clip_sample=False)
    return ClassifierGuidedPipeline(tiny_image_unet(), scheduler, tiny_noise_aware_classifier(scheduler))


def clip_guided() -> ClassifierGuidedTextToImagePipeline:
    scheduler = GuidedDDPMScheduler(clip_sample=False)
    clip = tiny_clip(process=describe_process(scheduler))
    return ClassifierGuidedTextToImagePipeline(tiny_image_unet(), scheduler, clip, tiny_tokenizer())


def unconditional() -> ImagePipeline:
    return ImagePipeline(tiny_image_unet(outputs=2), GuidedDDPMScheduler(variance_type="learned_range"))


def autoencoder() -> VAEPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VAEPipeline(tiny_autoencoder(latent="vector", likelihood="gaussian"))


PIPELINES: dict[str, tuple[Callable[[], Any], tuple[Any, ...], dict[str, Any]]] = {
    "text to image": (text_to_image, (PROMPTS,), {"num_inference_steps": STEPS}),
    "classifier": (classifier_guided, ([0, 2],), {"num_inference_steps": STEPS, "classifier_scale": 3.0}),
    "clip": (clip_guided, (WORDS[:2],), {"num_inference_steps": STEPS, "classifier_scale": 3.0}),
    "unconditional": (unconditional, (2,), {"num_inference_steps": STEPS}),
    "autoencoder": (autoencoder, (2,), {}),
}


def drawn(pipeline: Any, *positional: Any, **arguments: Any) -> torch.Tensor:
    """The images, `(batch, channels, height, width)` in [0, 1], with noise drawn on the CPU."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    return pipeline(*positional, generator=generators, output_type="pt", **arguments).images.float().cpu()
