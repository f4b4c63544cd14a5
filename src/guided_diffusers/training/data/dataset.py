"""Image-text data: any Hub id, image folder or parquet -> pixels in [-1, 1] and captions, by row number.

Nothing here keeps a position or a random state: pixels are a function of the row, and which caption of a row
is used is a function of (seed, position), position being the sample's place in the whole run. So resuming
costs nothing, and the number of processes changes nothing.

Images are decoded once, into a memory-mapped uint8 file that is keyed by what made it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from guided_diffusers.core.checks import check_choice, check_that
from guided_diffusers.core.declared import Count, Declared, Whole
from guided_diffusers.core.randomness import seed_for
from guided_diffusers.store.columns import captions_of
from guided_diffusers.store.files import cache_folder, new_array, write_array_atomically
from guided_diffusers.store.hashes import json_hash
from guided_diffusers.training.data.column_types import class_names
from guided_diffusers.training.data.decoding import decode_cell
from guided_diffusers.training.data.opening import load_image_text
from guided_diffusers.training.engine.config import option

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Chosen = TypeVar("Chosen", str, Tensor)

DECODING_VERSION = 2
"""Part of the key of decoded images: raise it when `decode_image` changes what it returns."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Declared):
    """Where the images and captions are and what they become."""

    path: str = field(metadata={"help": "Hub id, folder (of images, or parquet), file or pattern of files"})
    split: str = option("train", 'in the syntax of the library datasets: "train", "test", "train[:1000]"')
    image_column: str = option("image", "the column with the images")
    caption_column: str | None = option("text", "column of captions: strings or lists of them; null: none")
    resolution: Count = option(32, "height and width in pixels: the shorter side is resized, the middle kept")
    crop: Count | None = option(None, "cut out the middle square of so many pixels first; null: do not")
    channels: Literal[1, 3] = option(3, "1 (grey) or 3 (RGB)")
    buckets: Count | tuple[tuple[Count, Count], ...] | None = option(
        None,
        "pictures of several shapes: a list of sizes [height, width], or a step, for sizes of about "
        "resolution^2 pixels whose sides are multiples of it; null: squares",
    )
    mirror: bool = option(False, "add the mirror image of every image as a row of its own: twice the rows")
    on_corrupt: Literal["auto", "raise", "skip"] = option(
        "auto",
        "a row with no image or a corrupt one: stop and name it, or leave it out with a warning; auto: skip "
        "in a stream, else raise",
    )
    cache_dir: str | None = option(
        None, "for decoded images and latents; null: $GUIDED_DIFFUSERS_CACHE, or the user's cache"
    )
    stream: bool = option(
        False, "read the rows as they come, keep none: data of any size, from .tar, parquet"
    )
    shuffle_buffer: Count = option(1000, "of a stream: rows, undecoded, among which the order is random")
    readers: Count | None = option(
        None,
        "of a stream: shards read at once over all processes, a multiple of them; null: up to 16",
    )
    workers: Whole | None = option(
        None, "of a stream: processes that decode, beside each; null: none on a CPU, up to 4 beside a GPU"
    )
    num_classes: Count | None = option(None, "of a stream: its classes, where their column has no names")

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be read are left out."""
        return self.on_corrupt == "skip" or (self.on_corrupt == "auto" and self.stream)


class ImageTextDataset:
    """Rows of an image-text dataset by number, decoded.

    The first construction decodes every image into a file in `config.cache_dir`; later ones map that file
    into memory. The file is keyed by the dataset's fingerprint and the transform, written under a temporary
    name and renamed: a run that is stopped in between leaves nothing half written, and two that race write
    the same.

    Attributes:
        config: The configuration.
        rows: The row numbers in the source, `(len,)` int64: all of them, less corrupt ones that were
            skipped, and once more in the same order for the mirror images.
        fingerprint: A hash of the dataset and the transform, for the key of whatever is derived from the
            pixels.
    """

    def __init__(
        self, config: DataConfig, dataset: Dataset | None = None, size: tuple[int, int] | None = None
    ) -> None:
        """Opens the dataset (or takes an open one, as from `load_image_text`) and decodes it if need be.

        Args:
            config: The configuration.
            dataset: An open one.
            size: Height and width in the place of `resolution`.

        Raises:
            ValueError: a row, named, has no image or a corrupt one, and `on_corrupt` is "raise".
        """
        check_that(config.buckets is None, "data.buckets", config.buckets, "null where this is trained")
        self.config, self._size = config, size or (config.resolution, config.resolution)
        self._dataset = load_image_text(config) if dataset is None else dataset
        made_of = {
            "version": DECODING_VERSION,
            "dataset": self._dataset._fingerprint,
            "image_column": config.image_column,
            "resolution": config.resolution if size is None else size,
            "channels": config.channels,
            "on_corrupt": "skip" if config.skips else "raise",
        }
        self.fingerprint = json_hash(made_of | ({} if config.crop is None else {"crop": config.crop}))
        stem = cache_folder(config.cache_dir) / f"pixels-{self.fingerprint[:32]}"
        if not stem.with_suffix(".rows.npy").is_file():
            self._decode(stem)
        self._pixels = np.load(stem.with_suffix(".npy"), mmap_mode="r")
        rows = np.load(stem.with_suffix(".rows.npy"))
        self._images = len(rows)
        self.rows = np.tile(rows, 2) if config.mirror else rows
        self.fingerprint = json_hash({"pixels": self.fingerprint, "mirror": config.mirror})
        self._captions, self._caption_names = None, None
        if config.caption_column is not None:
            self._captions = self._dataset.select_columns([config.caption_column])
            self._caption_names = class_names(self._dataset.features[config.caption_column])

    def __len__(self) -> int:
        """The number of rows, mirror images counted and skipped ones not."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: (channels, height, width)."""
        return tuple(self._pixels.shape[1:])

    def pixels(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Images as the network sees them.

        Args:
            indices: Row numbers in [0, len); with `mirror` the latter half are the mirror images of the
                former.

        Returns:
            `(batch, channels, height, width)`, float32 in [-1, 1].
        """
        indices = np.asarray(indices)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"indices must be in [0, {len(self)}), got {indices.min()} to {indices.max()}")
        pixels = from_bytes(torch.from_numpy(self._pixels[indices % self._images]))
        mirrored = torch.from_numpy(indices >= self._images)
        if mirrored.any():
            pixels[mirrored] = pixels[mirrored].flip(-1)
        return pixels

    def captions(
        self, indices: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray, seed: int = 0
    ) -> list[str]:
        """One caption a row; of several, the one that (seed, position) chooses.

        Raises:
            ValueError: there is no caption column, or a row has no caption (its number is named).
        """
        return chosen_captions(self._options(self.rows[np.asarray(indices)]), positions, seed)

    def all_captions(self) -> list[str]:
        """Every distinct caption of the dataset, sorted: what a tokenizer is trained on.

        Raises:
            ValueError: as of `captions`, for any row.
        """
        unique: set[str] = set()
        for start in range(0, self._images, 10_000):
            unique.update(*self._options(self.rows[: self._images][start : start + 10_000]))
        return sorted(unique)

    def first_captions(self) -> list[str]:
        """The first caption of each row.

        Raises:
            ValueError: as of `captions`.
        """
        return [options[0] for options in self._options(self.rows)]

    def column(self, name: str) -> list[Any]:
        """The values of another column of the source, such as a class label, one a row.

        Raises:
            ValueError: there is no such column, naming those that there are.
        """
        check_choice(f"column of {self.config.path!r}", name, self._dataset.column_names)
        return self._dataset.select_columns([name])[self.rows][name]

    def class_names(self, name: str) -> list[str] | None:
        """The names of the classes of a column of class numbers; None for a column that has no names."""
        names = getattr(self._dataset.features[name], "names", None)
        return None if names is None else list(names)

    @property
    def sources(self) -> int:
        """The number of rows that are no mirror images: the first ones."""
        return self._images

    def _options(self, rows: np.ndarray) -> list[list[str]]:
        """The captions of each of some rows of the source, at least one each."""
        config = self.config
        if self._captions is None:
            raise ValueError(f"caption_column is None: name a column of {config.path!r} to train on text")
        where = f"column {config.caption_column!r} of {config.path!r}"
        cells = self._captions[rows][config.caption_column]
        if (names := self._caption_names) is not None:
            cells = [named_captions(cell, names) for cell in cells]
        return captions_of(cells, where, rows)

    def _decode(self, stem: Path) -> None:
        config, count = self.config, len(self._dataset)
        logger.info("decoding %d images of %r into %s.npy", count, config.path, stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        temporary = stem.with_suffix(f".{os.getpid()}.tmp")
        shape = (count, config.channels, *self._size)
        images, kept, problems = self._dataset.select_columns([config.image_column]), [], []
        decode = partial(decode_cell, config=config, size=self._size)
        try:
            pixels = new_array(temporary, np.uint8, shape)
            with (
                ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
                tqdm(total=count, desc="decoding", unit="image", disable=None) as bar,
            ):
                for start in range(0, count, 1024):
                    cells = images[start : start + 1024][config.image_column]
                    for row, result in enumerate(pool.map(decode, cells), start):
                        if isinstance(result, str):
                            problems.append(self._report(row, result))
                        else:
                            pixels[len(kept)] = result
                            kept.append(row)
                        bar.update()
            if not kept:
                raise ValueError(f"no image of {config.path!r} can be decoded; the first: {problems[0]}")
            pixels.flush()
            os.replace(temporary, stem.with_suffix(".npy"))
        finally:
            temporary.unlink(missing_ok=True)
        if problems:
            logger.warning("skipped %d of %d rows of %r", len(problems), count, config.path)
        write_array_atomically(stem.with_suffix(".rows.npy"), np.array(kept, dtype=np.int64))

    def _report(self, row: int, problem: str) -> str:
        message = f"row {row} of {self.config.path!r} {problem}"
        if not self.config.skips:
            raise ValueError(f'{message}. Mend or drop it, or leave such rows out with on_corrupt: "skip"')
        logger.warning("%s (skipped)", message)
        return message


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 pixels as the network sees them: float32 in [-1, 1], of the same shape."""
    return pixels.float().div_(127.5).sub_(1.0)


def chosen_captions(
    captions: Sequence[Sequence[Chosen]], positions: Sequence[int] | np.ndarray, seed: int
) -> list[Chosen]:
    """Of each row's captions, or their embeddings, the one that (seed, position) chooses."""
    numbers = [seed_for(seed, int(position)) >> 8 for position in positions]
    return [options[number % len(options)] for options, number in zip(captions, numbers, strict=True)]


def named_captions(cell: Any, names: list[str]) -> Any:  # noqa: ANN401 (a cell of any data)
    """Class numbers as names; None for one that is no class's."""
    if isinstance(cell, list):
        return [named_captions(one, names) for one in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None
