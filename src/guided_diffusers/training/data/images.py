"""Images that a network learns to see: pixels or an autoencoder's latents, clean or noised.

A training sample at position p has randomness of (seed, p) alone: its level, its noise, its draw from the
latents' posterior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from guided_diffusers.core.randomness import Stream, randn_for, seed_for
from guided_diffusers.hub.component import class_of, find_component, load_whole
from guided_diffusers.losses import Levels, quartile
from guided_diffusers.models.autoencoder import VariationalAutoencoder
from guided_diffusers.models.latents import (
    IMAGE_AUTOENCODERS,
    encode,
    image_channels,
    latent_shape,
    told_class,
)
from guided_diffusers.training.data.cache import cached_latents, fingerprint
from guided_diffusers.training.data.dataset import ImageTextDataset
from guided_diffusers.training.data.precomputed import MOMENTS
from guided_diffusers.training.data.rows import Rows
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.order import uniform_for


class Latents(Protocol):
    """Posteriors of the data set's images, in standardised latents, by row."""

    def __len__(self) -> int:
        """The number of rows."""

    def sample(self, indices: Sequence[int], noise: Tensor) -> Tensor:
        """Latents of some rows from standard normal noise: mean + deviation x noise, (batch, ...)."""

    # Those of a stream have `source`, where rows come from; it has no number of rows.


class Pixels:
    """A data set's images in the place of latents: nothing is drawn.

    Args:
        data: the images.
    """

    def __init__(self, data: ImageTextDataset | ImageTextStream) -> None:
        self._data = data
        self.source = getattr(data, "source", None)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._data)

    def sample(self, indices: Sequence[int], noise: Tensor) -> Tensor:
        """The images of some rows, (batch, channels, height, width) in [-1, 1]; `noise` is not used."""
        return self._data.pixels(indices)


class EncodedPixels:
    """A stream's images in the place of latents, which they become at every step, on the device.

    Args:
        data: the images.
        autoencoder: a frozen one, on the device that trains.
    """

    def __init__(self, data: ImageTextStream, autoencoder: nn.Module) -> None:
        self._data, self._autoencoder, self.source = data, autoencoder, data.source

    def sample(self, indices: Rows, noise: Tensor) -> dict[str, Tensor]:
        """What `encode` makes latents of."""
        return {"pixels": self._data.pixels(indices), "noise": noise}

    @torch.no_grad()
    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """Latents: mean + deviation x noise, (batch, ...), in the autoencoder's precision."""
        with torch.autocast(images["noise"].device.type, enabled=False):
            mean, std = encode(self._autoencoder, images["pixels"])
            return torch.addcmul(mean, std, images["noise"])


class PrecomputedLatents:
    """Posteriors of a stream's images, as they are in its shards.

    Args:
        data: the rows.
    """

    def __init__(self, data: ImageTextStream) -> None:
        self.source = data.source

    def sample(self, indices: Rows, noise: Tensor) -> Tensor:
        """Latents of some rows from standard normal noise: mean + deviation x noise, (batch, ...)."""
        mean, std = indices.columns[MOMENTS].float().unbind(1)
        return torch.addcmul(mean, std, noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Pixels or latents by row.

    Attributes:
        images: their source.
        shape: of one image or latent.
        latent: whether each is a draw from a posterior.
    """

    images: Latents
    shape: tuple[int, ...]
    latent: bool = False

    def shape_of(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The shape of an image or latent among some rows."""
        return self.shape

    @property
    def source(self) -> ImageTextStream | None:
        """The stream that rows come from; None of rows by number."""
        return getattr(self.images, "source", None)

    @property
    def num_samples(self) -> int:
        """The number of rows; 0 of a stream, which has none."""
        return len(self.images) if self.source is None else 0

    def seen(self, images: Any) -> Tensor:
        """What `at` gave, on the device, as the network sees it: a stream's are encoded now."""
        return images if isinstance(images, Tensor) else self.images.encode(images)

    def at(self, indices: Sequence[int], positions: Sequence[int], noise: Tensor) -> Tensor:
        """The images of some rows at their positions in training, `(batch, *shape)`, drawn with `noise`."""
        return self.images.sample(indices, noise)

    def first(self, count: int | None) -> Tensor:
        """The first rows, each the mean of its posterior where it has one; (count, ...)."""
        rows = list(range(len(self.images)))[:count]
        return self.images.sample(rows, torch.zeros(len(rows), *self.shape))

    def drawn(
        self, rows: list[int], positions: list[int], seed: int, levels: Levels | None
    ) -> dict[str, Any]:
        """The `images` of some rows at their positions in training.

        With a distribution of noise levels also eps as `noise`, the `level` (on the CPU in float64), and as
        `bins` its quartile.
        """
        draws = self.latent + (levels is not None)
        noise = randn_for(seed_for(seed, Stream.NOISE), positions, (draws, *self.shape))
        batch: dict[str, Any] = {"images": self.images.sample(rows, noise[:, -1] if self.latent else noise)}
        if levels is not None:
            level = levels(uniform_for(seed_for(seed, Stream.LEVEL), positions))
            batch |= {"noise": noise[:, 0], "level": level, "bins": quartile(levels, level)}
        return batch


def load_autoencoder(
    name: str | None, channels: int | None = None, own_class: bool = False
) -> nn.Module | None:
    """A frozen autoencoder of any class that `latents` knows; AutoencoderKL as VariationalAutoencoder.

    Args:
        name: A folder, shipped name or Hub id, of it or of a pipeline that has it; None gives None.
        channels: Of the images that it is to encode, which `data.channels` says.
        own_class: An AutoencoderKL stays one.

    Raises:
        ValueError: It is of another class, or for other images.
    """
    if name is None:
        return None
    where = find_component(name, "vae", IMAGE_AUTOENCODERS)
    kind = class_of(where) or AutoencoderKL.__name__
    if kind not in IMAGE_AUTOENCODERS:
        raise ValueError(told_class(name, kind))
    known = getattr(diffusers, kind, None)
    cls = VariationalAutoencoder if known is None or (known is AutoencoderKL and not own_class) else known
    vae = load_whole(cls, where, name).requires_grad_(False).eval()
    seen = image_channels(vae.config)
    if channels is not None and channels != seen:
        raise ValueError(f"autoencoder {name} is of images of {seen} channels; data.channels is {channels}")
    return vae


def image_arguments(data: ImageTextDataset | ImageTextStream, vae: nn.Module | None) -> dict[str, Any]:
    """The arguments of `Images`: the pixels of a data set, or its latents, cached; of a stream computed."""
    precomputed = getattr(data, "precomputed", None)
    if precomputed is not None:
        precomputed.check(data.config, None if vae is None else fingerprint(vae))
        return {"images": PrecomputedLatents(data), "shape": tuple(precomputed.latent), "latent": True}
    if vae is None:
        return {"images": Pixels(data), "shape": data.shape}
    if isinstance(data, ImageTextStream):
        shape = latent_shape(vae, *data.shape[1:])
        return {"images": EncodedPixels(data, vae), "shape": shape, "latent": True}
    latents = cached_latents(vae, data)
    return {"images": latents, "shape": tuple(latents.moments([0])[0].shape[1:]), "latent": True}
