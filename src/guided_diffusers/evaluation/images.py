"""Images of a folder, an npz file or a parquet file, with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that, one_line
from guided_diffusers.store.columns import captions_of, class_numbers
from guided_diffusers.store.files import visible_files
from guided_diffusers.store.image_reader import is_picture, read_image
from guided_diffusers.store.reading import read_json_lines, read_parquet


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images and what is known of each.

    Attributes:
        images: `(count, 1 or 3, height, width)` uint8.
        labels: `(count,)` int64 classes, or None.
        captions: At least one text an image, or None.
        names: The name of each class by its number, or None.
        unread: Why `labels` or `captions` is None though the data have such a column, by attribute.
    """

    images: Tensor
    labels: Tensor | None = None
    captions: list[list[str]] | None = None
    names: list[str] | None = None
    unread: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    def need(self, attribute: Literal["labels", "captions"], reason: str) -> Any:
        """The labels or captions; ValueError with `reason`, and why they could not be read, without them."""
        if getattr(self, attribute) is None:
            unread = self.unread.get(attribute)
            raise ValueError(f"{reason}; {unread}" if unread else reason)
        return getattr(self, attribute)


def check_integers(name: str, value: Any, count: int, below: int) -> Tensor:
    """A tensor `(count,)` of integers from 0 to less than `below`, such as labels."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    allowed = f"({count},) integers from 0 to {below - 1}"
    check_that(whole and value.dtype != torch.bool and value.shape == (count,), name, value, allowed)
    check_that(all(0 <= number < below for number in value.tolist()), name, value.tolist(), allowed)
    return value


def check_pixels(
    name: str, images: Any, channels: Sequence[int] | None = None, count: int | str = "count"
) -> Tensor:
    """Images `(count, channels, height, width)` uint8, of so many channels and so many images where said."""
    fits = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4
    fits = fits and (channels is None or images.shape[1] in channels) and count in ("count", len(images))
    of = "channels" if channels is None else " or ".join(map(str, channels))
    check_that(fits, name, images, f"uint8 ({count}, {of}, height, width)")
    return images


def read_images(path: Path | str, *, limit: int | None = None) -> ImageSet:
    """Read images.

    Args:
        path: A folder of image files (sorted by name; with a metadata.jsonl, in its order, with `file_name`
            and perhaps `text` and `label`), an .npz with `images` (uint8, channels first or last), or a
            .parquet with a column `image` and perhaps `text`, `label` and `name`.
        limit: Read the first so many only.

    Raises:
        FileNotFoundError: Nothing there.
        ValueError: No images, an unreadable one, or images of several sizes; the file is named.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, limit)
    if not path.is_file():
        raise FileNotFoundError(f"no folder or file of images at {path}")
    readers = {".npz": _npz, ".parquet": _parquet}
    check_that(path.suffix in readers, "the source of images", str(path), "a folder, .npz, .parquet")
    return readers[path.suffix](path, limit)


def _folder(path: Path, limit: int | None) -> ImageSet:
    metadata = path / "metadata.jsonl"
    if metadata.is_file():
        lines = read_json_lines(metadata)[:limit]
        rows, files = [row for _, row in lines], [_named(metadata, *line) for line in lines]
    elif (path / "generation.json").is_file() and not any(path.glob("*.png")):
        return _chunks(path, limit)
    else:
        rows, files = [], sorted(path / file for file in visible_files(path) if is_picture(file))[:limit]
    if not files:
        raise ValueError(f"{path} holds no images: no file whose name ends as pictures' do, such as .png")
    return ImageSet(images=_stacked([(str(file), file) for file in files]), **_columns(rows, metadata))


def _named(metadata: Path, number: int, row: dict[str, Any]) -> Path:
    name = row.get("file_name")
    check_that(isinstance(name, str), f"file_name of {metadata}, line {number},", name, "a picture's name")
    return metadata.parent / name


def _chunks(path: Path, limit: int | None) -> ImageSet:
    """The npz chunks of `generate_images`, in order."""
    parts = [_npz(file, None).images for file in sorted(path.glob("chunk-*.npz"))]
    if not parts:
        raise ValueError(f"{path} holds no images yet")
    return ImageSet(images=torch.cat(parts)[:limit])


def _npz(path: Path, limit: int | None) -> ImageSet:
    with np.load(path, allow_pickle=False) as file:
        check_that("images" in file, f"arrays of {path}", list(file), "one named images among them")
        array = file["images"][:limit]
    fits = array.dtype == np.uint8 and array.ndim == 4 and len(array)
    check_that(fits, f"images of {path}", f"{array.dtype} {array.shape}", "uint8 with 4 dimensions")
    if array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return ImageSet(images=torch.from_numpy(np.ascontiguousarray(array)))


def _parquet(path: Path, limit: int | None) -> ImageSet:
    table = read_parquet(path).slice(0, limit)
    fits, told = len(table) and "image" in table.column_names, f"{len(table)} rows of {table.column_names}"
    check_that(fits, str(path), told, "rows with a column named image")
    rows = table.to_pylist()
    cells = [row["image"] for row in rows]
    sources = [
        (f"{path}, row {number}", cell["bytes"] if isinstance(cell, dict) else cell)
        for number, cell in enumerate(cells)
    ]
    for name, source in sources:
        check_that(isinstance(source, bytes), f"image of {name},", source, "the bytes of an image file")
    return ImageSet(images=_stacked(sources), **_columns(rows, path))


def _columns(rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Labels, captions and class names of rows that have them; of others, why they cannot be read."""
    columns: dict[str, Any] = {"unread": {}}
    for name, column, read in (("captions", "text", captions_of), ("labels", "label", _labels)):
        cells = [row.get(column) for row in rows]
        if any(cell is not None for cell in cells):
            try:
                columns[name] = read(cells, f"column {column!r} of {path}")
            except ValueError as error:
                columns["unread"][name] = str(error)
    if "labels" in columns and all("name" in row for row in rows):
        named = {row["label"]: row["name"] for row in rows}
        columns["names"] = [named.get(label, str(label)) for label in range(max(named) + 1)]
    return columns


def _labels(cells: Sequence[Any], where: str) -> Tensor:
    """Class numbers; names are none, for nothing says which number a judge or a network gives to each."""
    numbers, names = class_numbers(cells, where)
    check_that(names is None, f"row 0 of {where}", cells[0], "the class's number")
    return numbers


def _stacked(sources: Sequence[tuple[str, Path | bytes]]) -> Tensor:
    """All images as one tensor, read as `image_reader` says; with grey ones alone it has one channel."""
    arrays = []
    for name, source in sources:
        try:
            image = read_image(source)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything for a damaged file
            raise ValueError(f"{name} is no readable image ({one_line(error)})") from error
        array = np.asarray(image)
        array = array[None] if image.mode == "L" else array.transpose(2, 0, 1)
        if arrays and array.shape[1:] != arrays[0].shape[1:]:
            remedy = "take it away, or draw with --no-grid" if Path(name).name == "grid.png" else ""
            raise ValueError(
                f"{name} is {array.shape[2]} x {array.shape[1]} pixels and the first image "
                f"{arrays[0].shape[2]} x {arrays[0].shape[1]}: {remedy or 'bring all to one size'}"
            )
        arrays.append(array)
    if len({len(array) for array in arrays}) > 1:
        arrays = [array.repeat(3, axis=0) if len(array) == 1 else array for array in arrays]
    return torch.from_numpy(np.stack(arrays))
