"""Published checkpoints, state dicts and configurations, to models of diffusers and of this package."""

from guided_diffusers.convert.adm import adm_classifier, adm_unet
from guided_diffusers.convert.ldm import ldm_autoencoder
from guided_diffusers.convert.presets import CLASSIFIER_PRESETS, UNET_PRESETS

__all__ = ["CLASSIFIER_PRESETS", "UNET_PRESETS", "adm_classifier", "adm_unet", "ldm_autoencoder"]
