"""Pipelines: from a prompt to images, with diffusers' arguments and any sum of guidance terms."""

from guided_diffusers.pipelines.cascade import CascadePipeline
from guided_diffusers.pipelines.classifier_guided import ClassifierGuidedPipeline
from guided_diffusers.pipelines.classifier_guided_text_to_image import ClassifierGuidedTextToImagePipeline
from guided_diffusers.pipelines.image import ImagePipeline
from guided_diffusers.pipelines.text_to_image import TextToImagePipeline
from guided_diffusers.pipelines.upsample import UpsamplePipeline
from guided_diffusers.pipelines.vae import VAEPipeline

__all__ = [
    "CascadePipeline",
    "ClassifierGuidedPipeline",
    "ClassifierGuidedTextToImagePipeline",
    "ImagePipeline",
    "TextToImagePipeline",
    "UpsamplePipeline",
    "VAEPipeline",
]
