"""Networks, and the mixin by which all of ours save and load safetensors only."""

from guided_diffusers.models.adm_unet import ADMUNet2DModel
from guided_diffusers.models.autoencoder import VariationalAutoencoder, VariationalAutoencoderOutput
from guided_diffusers.models.image_classifier import ImageClassifier
from guided_diffusers.models.noise_aware_classifier import NoiseAwareClassifier
from guided_diffusers.models.noise_aware_clip import NoiseAwareCLIP
from guided_diffusers.models.patched_unet import PatchedUNet2DConditionModel, PatchedUNet2DModel
from guided_diffusers.models.safe import SafeWeightsMixin

__all__ = [
    "ADMUNet2DModel",
    "ImageClassifier",
    "NoiseAwareCLIP",
    "NoiseAwareClassifier",
    "PatchedUNet2DConditionModel",
    "PatchedUNet2DModel",
    "SafeWeightsMixin",
    "VariationalAutoencoder",
    "VariationalAutoencoderOutput",
]
