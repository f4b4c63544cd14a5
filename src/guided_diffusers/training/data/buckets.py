"""Pictures of several shapes: each is cut to the nearest of a few sizes, a batch to one of them.

Cut to one square, pictures lose their sides, and a network learns things that are cut off. A bucket is a data
set of its own (pixels, latents); here they are one, whose rows are those of the buckets, one after another.
Which rows make the batch at a position is a function of the seed and the position alone.

References:
    Podell et al., "SDXL" (arXiv:2307.01952), section 2.3.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.models.latents import spatial_factor
from guided_diffusers.store.files import cache_folder, write_array_atomically
from guided_diffusers.training.data import stream
from guided_diffusers.training.data.cache import short_hash
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import Images, image_arguments
from guided_diffusers.training.data.opening import load_image_text
from guided_diffusers.training.engine.order import permutation

Size = tuple[int, int]
"""Height and width in pixels."""
MOST = 2.0
"""The longer side of a bucket over the shorter, at most, where the sizes are not named."""


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """Sizes of at most `resolution`^2 pixels, as near to that as the step allows, from 1:2 to 2:1.

    Args:
        resolution: In pixels.
        step: Both sides are multiples of it.
    """
    sides = range(step, int(resolution * MOST) + 1, step)
    pairs = [(side, resolution**2 // side // step * step) for side in sides]
    sizes = {size for pair in pairs for size in (pair, pair[::-1]) if min(size) > 0}
    return sorted(size for size in sizes if max(size) <= MOST * min(size))


def nearest(sizes: Sequence[Size], height: int, width: int) -> int:
    """The number of the size whose ratio of sides is nearest to a picture's, on a logarithmic scale."""
    ratios = np.log([h / w for h, w in sizes])
    return int(np.abs(ratios - np.log(height / width)).argmin())


class BucketedData:
    """Image-text data of several sizes; as ImageTextDataset but for pixels, which each bucket has its own of.

    Attributes:
        config: The configuration.
        buckets: The data sets that have rows, in the order of their sizes.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, step = config, config.buckets
        sizes = bucket_sizes(config.resolution, step) if isinstance(step, int) else list(step or ())
        check_that(
            sizes, "data.buckets", step, f"a step of at most data.resolution, {config.resolution}, or sizes"
        )
        check_that(config.crop is None, "data.crop", config.crop, "null with data.buckets")
        dataset, alone = load_image_text(config), replace(config, buckets=None)
        chosen = np.array([nearest(sizes, *shape) for shape in _shapes(dataset, config)])
        rows = {size: (chosen == number).nonzero()[0] for number, size in enumerate(sizes)}
        self.buckets = [
            ImageTextDataset(alone, dataset.select(members), size)
            for size, members in rows.items()
            if len(members)
        ]
        self._ends = list(accumulate(map(len, self.buckets)))

    def __len__(self) -> int:
        """The number of rows of all buckets."""
        return self._ends[-1]

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each bucket."""
        return [len(bucket) for bucket in self.buckets]

    def place(self, index: int) -> tuple[int, int]:
        """A row's bucket, and its number there."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - len(self.buckets[number]))

    def places(self, indices: Sequence[int]) -> tuple[int, list[int]]:
        """The bucket of some rows, which must be of one, and their numbers there."""
        buckets, rows = zip(*map(self.place, indices), strict=True)
        check_that(len(set(buckets)) == 1, "rows", list(indices), "those of one bucket")
        return buckets[0], list(rows)

    def captions(self, indices: Sequence[int], positions: Sequence[int], seed: int = 0) -> list[str]:
        """As of ImageTextDataset."""
        found = zip(map(self.place, indices), positions, strict=True)
        return [self.buckets[b].captions([row], [position], seed)[0] for (b, row), position in found]

    def all_captions(self) -> list[str]:
        """As of ImageTextDataset."""
        return sorted(set(chain.from_iterable(bucket.all_captions() for bucket in self.buckets)))


class BucketOrder:
    """Which rows a batch has: of one bucket, whose rows come in an order that every epoch draws anew.

    An epoch has every row once; a bucket's last batch is filled with rows from the beginning of its order.

    Args:
        sizes: Rows of each bucket.
        batch_size: Over all processes.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int) -> None:
        self.batch_size, self.sizes = batch_size, tuple(sizes)
        self._firsts = [0, *accumulate(sizes)]
        self._batches = [(b, n) for b, size in enumerate(sizes) for n in range(-(-size // batch_size))]

    def __call__(self, seed: int, positions: Sequence[int], num_samples: int) -> list[int]:
        """The rows at some positions in training, as `order.data_order` gives them."""
        seed = seed_for(seed, Stream.BUCKETS)
        return [self._row(seed, position) for position in positions]

    def _row(self, seed: int, position: int) -> int:
        batch, slot = divmod(position, self.batch_size)
        epoch, batch = divmod(batch, len(self._batches))
        bucket, number = self._batches[int(_shuffled(seed, epoch, -1, len(self._batches))[batch])]
        size = self.sizes[bucket]
        place = (number * self.batch_size + slot) % size
        return self._firsts[bucket] + int(_shuffled(seed, epoch, bucket, size)[place])


@lru_cache(maxsize=64)
def _shuffled(seed: int, epoch: int, what: int, count: int) -> Tensor:
    """An epoch's order of a bucket's rows, `what` being its number, or of all batches, at -1."""
    return permutation(seed_for(seed_for(seed_for(seed, epoch), what + 1), count), count)


class BucketedImages:
    """The pixels or latents of all buckets, in the place of `Images`.

    Args:
        data: The buckets.
        vae: The autoencoder of the latents; None for pixels.
        batch_size: Over all processes.

    Raises:
        ValueError: A size that is no multiple of what the autoencoder makes smaller.
    """

    def __init__(self, data: BucketedData, vae: nn.Module | None, batch_size: int) -> None:
        factor = 1 if vae is None else spatial_factor(vae)
        for _, height, width in (bucket.shape for bucket in data.buckets):
            fits = height % factor == width % factor == 0
            check_that(fits, "data.buckets", [height, width], f"sides that are multiples of {factor}")
        self.images, self.latent, self.source, self.num_samples = data, vae is not None, None, len(data)
        self.order = BucketOrder(data.sizes, batch_size)
        self._buckets = [Images(**image_arguments(bucket, vae)) for bucket in data.buckets]

    def shape_of(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Of the bucket of some rows."""
        return self._buckets[self.images.places(indices)[0]].shape

    def seen(self, images: Tensor) -> Tensor:
        """As of Images."""
        return images

    def at(self, indices: Sequence[int], positions: Sequence[int], noise: Tensor) -> Tensor:
        """As of Images; the rows are of one bucket."""
        bucket, rows = self.images.places(indices)
        return self._buckets[bucket].at(rows, positions, noise)


def open_data(config: DataConfig, seed: int) -> Any:
    """The data of a configuration, in buckets where it asks for them; else as `stream.open_data`."""
    if config.buckets is None or config.stream:
        return stream.open_data(config, seed)
    with PartialState().main_process_first():  # the first decodes
        return BucketedData(config)


def images_of(data: Any, vae: nn.Module | None, batch_size: int) -> Images | BucketedImages:
    """The pixels of what `open_data` gives, or its latents, cached."""
    if isinstance(data, BucketedData):
        return BucketedImages(data, vae, batch_size)
    return Images(**image_arguments(data, vae))


def _shapes(dataset: Any, config: DataConfig) -> np.ndarray:
    """Height and width of every picture, (rows, 2), read once and kept."""
    name = f"shapes-{short_hash(dataset._fingerprint, config.image_column)}.npy"
    path = cache_folder(config.cache_dir) / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = dataset.select_columns([config.image_column])
        shapes = [_shape(cells[row][config.image_column]) for row in range(len(dataset))]
        write_array_atomically(path, np.array(shapes))
    return np.load(path)


def _shape(cell: dict[str, Any] | None) -> Size:
    """Of a picture as it is shown; one that cannot be read counts as square, and is told when decoded."""
    try:
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = image.size
    except Exception:  # Pillow raises anything for a damaged file
        return (1, 1)
    return (width, height) if turned else (height, width)
