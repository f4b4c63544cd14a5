"""Networks: the autoencoder, and the mixin by which all of ours save and load safetensors only."""

from .autoencoder import VariationalAutoencoder, VariationalAutoencoderOutput
from .safe import SafeWeightsMixin

__all__ = ["SafeWeightsMixin", "VariationalAutoencoder", "VariationalAutoencoderOutput"]
