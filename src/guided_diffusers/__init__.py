"""Guidance of every kind for any diffusers scheduler, and the training and evaluation that it needs.

Public names are imported when they are first used: importing the package imports neither torch nor diffusers.
Where diffusers is imported, before or later, its loader learns the classes of this library: see
`_registration.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from guided_diffusers import _registration

if TYPE_CHECKING:
    from guided_diffusers.core.condition import Condition
    from guided_diffusers.core.denoiser import Denoised, ModelDenoiser
    from guided_diffusers.core.noise import NoiseLevel
    from guided_diffusers.core.prediction import from_denoised, to_denoised
    from guided_diffusers.models.adm_unet import ADMUNet2DModel
    from guided_diffusers.models.autoencoder import VariationalAutoencoder
    from guided_diffusers.models.image_classifier import ImageClassifier
    from guided_diffusers.models.noise_aware_classifier import NoiseAwareClassifier
    from guided_diffusers.models.noise_aware_clip import NoiseAwareCLIP
    from guided_diffusers.models.patched_unet import PatchedUNet2DConditionModel, PatchedUNet2DModel
    from guided_diffusers.pipelines.cascade import CascadePipeline
    from guided_diffusers.pipelines.classifier_guided import ClassifierGuidedPipeline
    from guided_diffusers.pipelines.classifier_guided_text_to_image import ClassifierGuidedTextToImagePipeline
    from guided_diffusers.pipelines.image import ImagePipeline
    from guided_diffusers.pipelines.text_to_image import TextToImagePipeline
    from guided_diffusers.pipelines.upsample import UpsamplePipeline
    from guided_diffusers.pipelines.vae import VAEPipeline
    from guided_diffusers.sampling import sampling_loop
    from guided_diffusers.schedulers import GuidedDDIMScheduler, GuidedDDPMScheduler, noise_level
    from guided_diffusers.stock.guider import ClassifierFreeGuider
    from guided_diffusers.stock.handle import guide
    from guided_diffusers.store.checkpoints import pretrained

__version__ = "0.1.0"

__all__ = [
    "ADMUNet2DModel",
    "CascadePipeline",
    "ClassifierFreeGuider",
    "ClassifierGuidedPipeline",
    "ClassifierGuidedTextToImagePipeline",
    "Condition",
    "Denoised",
    "GuidedDDIMScheduler",
    "GuidedDDPMScheduler",
    "ImageClassifier",
    "ImagePipeline",
    "ModelDenoiser",
    "NoiseAwareCLIP",
    "NoiseAwareClassifier",
    "NoiseLevel",
    "PatchedUNet2DConditionModel",
    "PatchedUNet2DModel",
    "TextToImagePipeline",
    "UpsamplePipeline",
    "VAEPipeline",
    "VariationalAutoencoder",
    "from_denoised",
    "guide",
    "noise_level",
    "pretrained",
    "sampling_loop",
    "to_denoised",
]

_HOME = {
    "ADMUNet2DModel": "guided_diffusers.models.adm_unet",
    "CascadePipeline": "guided_diffusers.pipelines.cascade",
    "ClassifierFreeGuider": "guided_diffusers.stock.guider",
    "ClassifierGuidedPipeline": "guided_diffusers.pipelines.classifier_guided",
    "ClassifierGuidedTextToImagePipeline": "guided_diffusers.pipelines.classifier_guided_text_to_image",
    "Condition": "guided_diffusers.core.condition",
    "Denoised": "guided_diffusers.core.denoiser",
    "GuidedDDIMScheduler": "guided_diffusers.schedulers",
    "GuidedDDPMScheduler": "guided_diffusers.schedulers",
    "ImageClassifier": "guided_diffusers.models.image_classifier",
    "ImagePipeline": "guided_diffusers.pipelines.image",
    "ModelDenoiser": "guided_diffusers.core.denoiser",
    "NoiseAwareCLIP": "guided_diffusers.models.noise_aware_clip",
    "NoiseAwareClassifier": "guided_diffusers.models.noise_aware_classifier",
    "NoiseLevel": "guided_diffusers.core.noise",
    "PatchedUNet2DConditionModel": "guided_diffusers.models.patched_unet",
    "PatchedUNet2DModel": "guided_diffusers.models.patched_unet",
    "TextToImagePipeline": "guided_diffusers.pipelines.text_to_image",
    "UpsamplePipeline": "guided_diffusers.pipelines.upsample",
    "VAEPipeline": "guided_diffusers.pipelines.vae",
    "VariationalAutoencoder": "guided_diffusers.models.autoencoder",
    "from_denoised": "guided_diffusers.core.prediction",
    "guide": "guided_diffusers.stock.handle",
    "noise_level": "guided_diffusers.schedulers",
    "pretrained": "guided_diffusers.store.checkpoints",
    "sampling_loop": "guided_diffusers.sampling",
    "to_denoised": "guided_diffusers.core.prediction",
    # diffusers' loader looks for these base classes in the library that a component names.
    "BaseGuidance": "diffusers.guiders",
    "DiffusionPipeline": "diffusers",
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}
_SUBMODULES = (
    "convert",
    "core",
    "evaluation",
    "guidance",
    "likelihood",
    "losses",
    "models",
    "pipelines",
    "schedulers",
    "stock",
    "store",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"guided_diffusers.{name}")
    else:
        known = ", ".join([*__all__, *_SUBMODULES])
        raise AttributeError(f"module 'guided_diffusers' has no attribute {name!r}; it has: {known}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *_SUBMODULES})


_registration.register(
    pipelines=(
        "CascadePipeline",
        "ClassifierGuidedPipeline",
        "ClassifierGuidedTextToImagePipeline",
        "ImagePipeline",
        "TextToImagePipeline",
        "UpsamplePipeline",
        "VAEPipeline",
    )
)
