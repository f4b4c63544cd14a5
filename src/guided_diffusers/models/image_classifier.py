"""A classifier of clean images: an autoencoder's encoder, pooling, a linear head.

    logits = W pool(h(x)) + b,        log p(y | x) = log softmax(logits)_y

h(x) is the encoder's last feature map, after its normalisation and activation and before the convolution that
makes latents of it; `pool` averages it over `pool_size` x `pool_size` windows. An autoencoder learns such
features without labels: as a start for all weights (fine-tuning), or left as they are with a head of their
own (a linear probe), they are worth most where labels are few.

Where a noise-aware classifier sees x_t, this one sees images: classifier guidance takes it with
`through="denoised"`, on the predicted x_0.

References:
    Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks" (Science 313, 2006).
    Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv:1610.01644).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from guided_diffusers.core.checks import check_int, check_tensor
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.models.labels import NamedClassesMixin, checked_names
from guided_diffusers.models.safe import SafeWeightsMixin

ENCODER_ARGUMENTS = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "norm_num_groups",
    "mid_block_add_attention",
)
"""The arguments that an autoencoder's configuration shares with the classifier's."""


class ImageClassifier(NamedClassesMixin, SafeWeightsMixin, ModelMixin, ConfigMixin):
    """Logits of clean images, of any size that the encoder halves evenly.

    Args:
        num_classes: Classes.
        in_channels: Channels of an image.
        down_block_types: The encoder's blocks, as of AutoencoderKL.
        block_out_channels: Channels of each resolution.
        layers_per_block: Residual blocks at each resolution.
        act_fn: Activation.
        norm_num_groups: Groups of the normalisations.
        mid_block_add_attention: Attention in the middle block.
        pool_size: The feature map is averaged to this height and width; 1 is the mean over positions.
        id2label: The name of each class, by index; names may then be given as labels.

    Raises:
        ValueError: A `pool_size` below 1, or names that are not those of the classes.
    """

    sees_noise: ClassVar[bool] = False
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
        pool_size: int = 1,
        id2label: Mapping[int | str, str] | None = None,
    ) -> None:
        super().__init__()
        check_int("pool_size", pool_size, 1)
        checked_names(id2label or {}, num_classes)
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=1,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            double_z=False,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.encoder.conv_out = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        self.head = nn.Linear(block_out_channels[-1] * pool_size**2, num_classes)

    @classmethod
    def from_autoencoder(
        cls, autoencoder: AutoencoderKL, copy_weights: bool = True, **arguments: Any
    ) -> Self:
        """A classifier with an autoencoder's encoder; the head is new.

        Args:
            autoencoder: A VariationalAutoencoder or AutoencoderKL.
            copy_weights: Copy the encoder's weights, all but those of its last convolution; without, the
                network is the same and starts from random weights.
            arguments: `num_classes`, `pool_size`, `id2label`.

        Raises:
            RuntimeError: The encoder's weights are not those that its configuration describes.
        """
        model = cls(**{name: autoencoder.config[name] for name in ENCODER_ARGUMENTS}, **arguments)
        if copy_weights:
            weights = autoencoder.encoder.state_dict().items()
            model.encoder.load_state_dict({n: w for n, w in weights if not n.startswith("conv_out.")})
        return model

    def features(self, images: Tensor) -> Tensor:
        """The pooled features of images (batch, channels, height, width) in [-1, 1]: (batch, features).

        Raises:
            ValueError: Images of other channels.
        """
        check_tensor("images", images, ("batch", self.config.in_channels, "height", "width"))
        return self.pool(self.encoder(images.to(self.dtype))).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of images (batch, channels, height, width) in [-1, 1]."""
        return self.head(self.features(images))

    def log_prob(self, images: Tensor, level: NoiseLevel | None, labels: Any) -> Tensor:
        """Log p(y | x) in nats: what `ClassifierGuidance(..., through="denoised")` takes as its `log_prob`.

        Args:
            images: Clean ones, or the predicted x_0, (batch, channels, height, width).
            level: Of what x_0 was predicted from; it does not matter.
            labels: As `NoiseAwareClassifier.log_prob` takes them.

        Returns:
            (batch,), float32 (float64 of a float64 network).

        Raises:
            ValueError: A label outside the classes, another number of labels than images, other channels.
        """
        ids = self.ids_for(images, labels)
        return at_least_float32(self(images)).log_softmax(dim=1).gather(1, ids[:, None])[:, 0]
