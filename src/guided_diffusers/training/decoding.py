"""An image file as the pixels that a model is trained on."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps


def decode_image(data: bytes, resolution: int, channels: int, crop: int | None = None) -> np.ndarray:
    """Decodes an image file and brings it to size.

    The orientation of the file's EXIF data is applied, transparency is laid over white, the middle `crop` x
    `crop` pixels are cut out if asked for, the shorter side is resized to `resolution` (bicubic, with
    antialiasing) and the middle is cut out. An image of the right size is left as it is, to the bit.

    Args:
        data: The file's bytes.
        resolution: Height and width of the result.
        channels: 1 (grey) or 3 (RGB).
        crop: Side of the middle square that is kept before resizing, such as 28 of a picture that was padded
            from 28 to 32; None for no crop.

    Returns:
        `(channels, resolution, resolution)`, uint8.

    Raises:
        OSError, SyntaxError, ValueError: As PIL does for files that are corrupt, or an image smaller than
            `crop`.
    """
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if crop is not None:
        image = _middle(image, crop)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _middle(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if min(width, height) < side:
        raise ValueError(f"the image is {width}x{height}, which is less than crop = {side}")
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
