"""Pictures as 8-bit pixels: the one reader of training, evaluation and pipelines.

Whatever a picture is, it becomes grey or RGB of 8 bits in one way:

- Of its metadata the orientation is applied and nothing else is read: nonsense beside it stops nothing.
- Of several frames the first is taken.
- 16 and 12 bits keep the upper 8. So do 32-bit integers from 0 to 65535, unless they could be 8 bits as well.
- Floating-point values from 0 (black) to 1 (white) become round(255 v).
- Transparency is laid over white.
- Palettes, CMYK and other colour spaces are converted as Pillow does.

Other integers and floating-point values have no range that is known: they are refused.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation upright."""


def is_picture(path: str | Path) -> bool:
    """Whether a file's name ends as those of a format of pictures do."""
    Image.init()
    form = Image.EXTENSION.get(Path(path).suffix.lower())
    return form in Image.OPEN and form != "HDF5"  # which holds any data


def read_image(source: bytes | Path, channels: Literal[1, 3] | None = None) -> Image.Image:
    """Reads a file as `eight_bit_image` gives it.

    Args:
        source: The file's bytes, or its path.
        channels: As of `eight_bit_image`.

    Raises:
        Exception: Whatever Pillow raises for a file that is damaged; ValueError as of `eight_bit_image`.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not data.startswith(b"\xff\xd8"):
            raise UnidentifiedImageError("it is in no format of pictures that is known") from None
        image = _Jpeg(io.BytesIO(data))
    with image:
        return eight_bit_image(image, channels)


def eight_bit_image(image: Image.Image, channels: Literal[1, 3] | None = None) -> Image.Image:
    """Brings an image of any mode to 8 bits, upright and opaque, as this module says.

    Args:
        image: Any; it is left as it is.
        channels: 1 for grey, 3 for RGB; None for grey of an opaque grey image and RGB of others.

    Raises:
        ValueError: Integers or floating-point values whose range is not known.
    """
    deep = image.mode == "F" or image.mode.startswith("I")
    upright = _upright(image)
    if deep:
        upright = _upper_bits(upright, image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    grey = upright.mode in ("1", "L") if channels is None else channels == 1
    return upright.convert("L" if grey else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged metadata raises anything; the pixels are not concerned
        turn = None
    image.getexif = Image.Exif  # else Pillow turns a TIFF while it loads it, and reads all of its metadata
    try:
        image.load()
    finally:
        del image.getexif
    return image if turn is None else image.transpose(turn)


def _upper_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as one of 8, its transparent pixels white.

    Args:
        image: Upright.
        file: As it was opened. Pillow leaves 12 bits of a TIFF at 0 to 4095, and what is white at 0 inverted.
    """
    values, tags = np.asarray(image), getattr(file, "tag_v2", {})
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        values = values << 4
    scaled = file.format == "PPM"  # Pillow scales those to 16 bits
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(
                f"the image holds floating-point values from {low:.4g} to {high:.4g}; allowed: 0 (black) "
                "to 1 (white). Divide them, or save it with 8 or 16 bits"
            )
        values = 1 - values if inverted else values
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if low < 0 or high > 65535 or (image.mode == "I" and 0 < high < 256 and not scaled):
        raise ValueError(
            f"the image holds 32-bit integers from {low} to {high}, whose range may be any; allowed: 8 bits, "
            "16 bits, or 32 with values from 0 to 65535 and some above 255. Save it with 8 or 16 bits"
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values = np.where(values == transparent, 65535, values)
    values = 65535 - values if inverted else values
    return Image.fromarray((values >> 8).astype(np.uint8))


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG file whose resolution is not read: damaged, it makes Pillow refuse the file."""

    def _read_dpi_from_exif(self) -> None:
        pass
