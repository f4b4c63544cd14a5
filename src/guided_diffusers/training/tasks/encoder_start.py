"""A noise-aware classifier that starts as an autoencoder's encoder.

The two share their shape: a convolution, residual blocks and downsampling at each resolution, a middle. What
has the same place and shape in both is copied. The timestep then must not disturb what was copied: the
projections by which it enters those residual blocks start at zero, and so does the output of attention that
the encoder does not have at that place. A copied block then computes at every timestep what it computed in
the encoder, and training opens the gates.

Between resolutions the encoder's convolution pads below and to the right, the classifier's on all sides: it
sees the same windows one pixel further up and left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from guided_diffusers.models.noise_aware_classifier import NoiseAwareClassifier

_TIMESTEP, _ATTENTION = ".time_emb_proj.", ".attentions."


@dataclass(frozen=True, kw_only=True)
class Copied:
    """How much of an encoder a classifier took over: tensors and numbers, of all that the encoder has."""

    tensors: int
    of_tensors: int
    numbers: int
    of_numbers: int

    def __str__(self) -> str:
        """For the log."""
        return (
            f"{self.tensors} of the encoder's {self.of_tensors} tensors, {self.numbers:,} of its "
            f"{self.of_numbers:,} numbers"
        )


@torch.no_grad()
def start_from_encoder(classifier: NoiseAwareClassifier, encoder: nn.Module) -> Copied:
    """Copy every parameter of an encoder that has its place and shape in a classifier.

    Args:
        classifier: Changed in place. Its `norm_num_groups` must be the encoder's, or what is copied computes
            something else.
        encoder: An autoencoder's, such as `VariationalAutoencoder.encoder`.

    Returns:
        What was copied.

    Raises:
        ValueError: Nothing fits, or the normalisations have other groups; the classifier is as it was.
    """
    own, given = classifier.state_dict(), encoder.state_dict()
    fitting = {name for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not any(own[name].dim() > 1 for name in fitting):
        raise ValueError(
            "none of the encoder's convolutions fits the classifier: give it the autoencoder's "
            "block_out_channels, layers_per_block and, for conv_in, its in_channels"
        )
    groups = encoder.conv_norm_out.num_groups
    if groups != classifier.config.norm_num_groups:
        raise ValueError(
            f"norm_num_groups is {classifier.config.norm_num_groups}, and the encoder's is {groups}: give "
            "the classifier the encoder's"
        )
    for name in fitting:
        own[name].copy_(given[name])  # a state_dict's tensors are the parameters themselves
    blocks = {name.rsplit(".", 2)[0] for name in fitting if ".resnets." in name}
    for name, value in own.items():
        timestep = _TIMESTEP in name and name.split(_TIMESTEP)[0] in blocks
        if timestep or (_ATTENTION in name and ".to_out." in name and name not in fitting):
            value.zero_()
    return Copied(
        tensors=len(fitting),
        of_tensors=len(given),
        numbers=sum(given[name].numel() for name in fitting),
        of_numbers=sum(value.numel() for value in given.values()),
    )
