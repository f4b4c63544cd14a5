"""An image file as the pixels that a model is trained on."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from guided_diffusers.store.image_reader import read_image


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


def _middle(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if min(width, height) < side:
        raise ValueError(f"the image is {width}x{height}, which is less than crop = {side}")
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
