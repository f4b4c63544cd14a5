"""Published checkpoints, state dicts and configurations, to models of diffusers and of this package."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from guided_diffusers.convert.presets import CLASSIFIER_PRESETS, UNET_PRESETS

if TYPE_CHECKING:
    from guided_diffusers.convert.adm import adm_classifier, adm_unet
    from guided_diffusers.convert.ldm import ldm_autoencoder

__all__ = ["CLASSIFIER_PRESETS", "UNET_PRESETS", "adm_classifier", "adm_unet", "ldm_autoencoder"]


def __getattr__(name: str) -> Any:
    """Imports a converter, and torch with it, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{name.partition('_')[0]}"), name)
