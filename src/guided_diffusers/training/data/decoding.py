"""An image file as the pixels that a model is trained on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from PIL import Image, ImageOps

from guided_diffusers.core.checks import one_line
from guided_diffusers.store.image_reader import read_image

if TYPE_CHECKING:
    from guided_diffusers.training.data.dataset import DataConfig


def decode_image(
    data: bytes, resolution: int | tuple[int, int], channels: int, crop: int | None = None
) -> np.ndarray:
    """Decodes an image file and brings it to size.

    The file is read as `image_reader` says, the middle `crop` x `crop` pixels are cut out if asked for, the
    image is resized to cover `resolution` (bicubic, with antialiasing) and the middle is cut out. An image
    of the right size is left as it is, to the bit.

    Args:
        data: The file's bytes.
        resolution: Height and width of the result; one number for both.
        channels: 1 (grey) or 3 (RGB).
        crop: Side of the middle square that is kept before resizing, such as 28 of a picture that was padded
            from 28 to 32; None for no crop.

    Returns:
        `(channels, height, width)`, uint8.

    Raises:
        Exception: Whatever Pillow raises for a file that is damaged. ValueError: an image smaller than
            `crop`, or one whose range of values is not known.
    """
    image = read_image(data, channels)
    if crop is not None:
        image = _middle(image, crop)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_cell(
    cell: dict[str, Any] | None, config: DataConfig, size: tuple[int, int] | None = None
) -> np.ndarray | str:
    """The image of a cell {"bytes", "path"} by `decode_image`, or what is wrong with it, to be read aloud.

    Args:
        cell: Of a row.
        config: Says what becomes of it.
        size: Height and width in the place of `resolution`.
    """
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        return "has no image"
    data, path = cell.get("bytes"), cell.get("path")
    try:
        if data is None:
            with open(path, "rb") if os.path.exists(path) else fsspec.open(path, "rb") as file:
                data = file.read()  # of a file, or of one inside an archive
    except FileNotFoundError:
        return f"has no image: the file {path} does not exist"
    except MemoryError:
        raise
    except Exception as error:  # as the file system raises it
        return f"has an image that cannot be read, {path}: {one_line(error)}"
    try:
        return decode_image(data, size or config.resolution, config.channels, config.crop)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything for a damaged file
        return f"has a corrupt image, {path or 'stored in the row'}: {one_line(error)}"


def _middle(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if min(width, height) < side:
        raise ValueError(f"the image is {width}x{height}, which is less than crop = {side}")
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
