"""A small PatchGAN discriminator: one logit for each patch of an image.

References:
    Image-to-Image Translation with Conditional Adversarial Networks (section 2.2.2), arXiv:1611.07004.
"""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from guided_diffusers.core.checks import check_int


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Convolutions that halve the resolution `num_layers` times and end in one logit a patch.

    Group normalisation instead of the paper's batch normalisation: an image's logits depend on no other
    image, so neither batch size nor process count changes them.

    Args:
        in_channels: Channels of the images.
        base_channels: Channels after the first layer, doubled by each further one up to four times.
        num_layers: Layers of stride 2.
        norm_num_groups: Groups of the normalisation, a divisor of `base_channels`.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, base_channels: int = 32, num_layers: int = 2, norm_num_groups: int = 8
    ) -> None:
        super().__init__()
        check_int("num_layers", num_layers, 1)
        widths = [base_channels * min(2**level, 4) for level in range(num_layers)]
        layers = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after, stride in [
            *zip(widths, widths[1:], [2] * num_layers, strict=False),
            (widths[-1], widths[-1], 1),
        ]:
            layers.append(nn.Conv2d(before, after, 4 if stride == 2 else 3, stride=stride, padding=1))
            layers += [nn.GroupNorm(norm_num_groups, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, sample: Tensor) -> Tensor:
        """Logits of images, from `(batch, in_channels, h, w)` to `(batch, 1, h / 2^n, w / 2^n)`."""
        return self.layers(sample)
