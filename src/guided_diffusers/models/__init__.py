"""Networks, and the mixin by which all of ours save and load safetensors only."""

from .adm_unet import ADMUNet2DModel
from .autoencoder import VariationalAutoencoder, VariationalAutoencoderOutput
from .image_classifier import ImageClassifier
from .noise_aware_classifier import NoiseAwareClassifier
from .noise_aware_clip import NoiseAwareCLIP
from .safe import SafeWeightsMixin

__all__ = [
    "ADMUNet2DModel",
    "ImageClassifier",
    "NoiseAwareCLIP",
    "NoiseAwareClassifier",
    "SafeWeightsMixin",
    "VariationalAutoencoder",
    "VariationalAutoencoderOutput",
]
