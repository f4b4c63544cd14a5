"""A picture of pictures: labelled rows and columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from guided_diffusers.core.checks import check_that

_GAP_PIXELS = 4
_FONT_PIXELS = 15
_LABEL_PIXELS = 190
_LETTERS_A_LINE = 22


def enlarge(image: Image.Image, min_pixels: int) -> Image.Image:
    """The image, each pixel made a square of them, so that its shorter side has at least `min_pixels`."""
    factor = max(1, -(-min_pixels // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped to it, as uint8 of the same shape."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Images as PIL's.

    Args:
        images: `(count, 1 or 3, height, width)`: uint8, or float in [-1, 1], clipped to it.

    Raises:
        ValueError: Another shape.
    """
    allowed = "(count, 1 or 3, height, width); latents go through a decoder first"
    check_that(images.ndim == 4 and images.shape[1] in (1, 3), "images", images, allowed)
    if images.dtype != torch.uint8:
        images = to_bytes(images)
    arrays = images.detach().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str],
    min_pixels: int = 96,
    column_labels: Sequence[str] | None = None,
    corner: str = "",
) -> Image.Image:
    """One row of images for each label, which stands on its left.

    Args:
        rows: Images of one size, as many in each row.
        labels: One for each row; a long one is wrapped, and cut where it is higher than its row.
        min_pixels: Smaller images are enlarged by a whole factor to at least this side.
        column_labels: One for each column, above it; short ones, for they are not wrapped. None for none.
        corner: What the column labels are, on their left.

    Returns:
        An RGB image.
    """
    tiles = [[enlarge(image.convert("RGB"), min_pixels) for image in row] for row in rows]
    width, height = tiles[0][0].size
    columns = max(len(row) for row in tiles)
    header = 0 if column_labels is None else _FONT_PIXELS + 2 * _GAP_PIXELS
    size = (
        _LABEL_PIXELS + columns * (width + _GAP_PIXELS) + _GAP_PIXELS,
        header + len(tiles) * (height + _GAP_PIXELS) + _GAP_PIXELS,
    )
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(_FONT_PIXELS)
    lefts = [_LABEL_PIXELS + _GAP_PIXELS + column * (width + _GAP_PIXELS) for column in range(columns)]
    lines_a_label = max(1, height // (_FONT_PIXELS + _GAP_PIXELS))
    if header:
        draw.text((2 * _GAP_PIXELS, _GAP_PIXELS + header // 2), corner, fill="black", font=font, anchor="lm")
    for left, label in zip(lefts, column_labels or [], strict=False):
        draw.text((left + width // 2, _GAP_PIXELS + header // 2), label, fill="black", font=font, anchor="mm")
    for row, (images, label) in enumerate(zip(tiles, labels, strict=True)):
        top = header + _GAP_PIXELS + row * (height + _GAP_PIXELS)
        text = "\n".join(textwrap.wrap(label, _LETTERS_A_LINE, max_lines=lines_a_label, placeholder=" ..."))
        draw.multiline_text((2 * _GAP_PIXELS, top + height // 2), text, fill="black", font=font, anchor="lm")
        for left, image in zip(lefts, images, strict=False):
            grid.paste(image, (left, top))
    return grid
