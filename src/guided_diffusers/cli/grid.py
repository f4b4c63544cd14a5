"""A picture of pictures: one labelled row for each prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP_PIXELS = 4
_FONT_PIXELS = 15
_LABEL_PIXELS = 190
_LETTERS_A_LINE = 22


def enlarge(image: Image.Image, min_pixels: int) -> Image.Image:
    """The image, each pixel made a square of them, so that its shorter side has at least `min_pixels`."""
    factor = max(1, -(-min_pixels // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], min_pixels: int = 96
) -> Image.Image:
    """One row of images for each label, which stands on its left.

    Args:
        rows: Images of one size, as many in each row.
        labels: One for each row; a long one is wrapped, and cut where it is higher than its row.
        min_pixels: Smaller images are enlarged by a whole factor to at least this side.

    Returns:
        An RGB image.
    """
    tiles = [[enlarge(image.convert("RGB"), min_pixels) for image in row] for row in rows]
    width, height = tiles[0][0].size
    columns = max(len(row) for row in tiles)
    size = (
        _LABEL_PIXELS + columns * (width + _GAP_PIXELS) + _GAP_PIXELS,
        len(tiles) * (height + _GAP_PIXELS) + _GAP_PIXELS,
    )
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(_FONT_PIXELS)
    lines_a_label = max(1, height // (_FONT_PIXELS + _GAP_PIXELS))
    for row, (images, label) in enumerate(zip(tiles, labels, strict=True)):
        top = _GAP_PIXELS + row * (height + _GAP_PIXELS)
        text = "\n".join(textwrap.wrap(label, _LETTERS_A_LINE, max_lines=lines_a_label, placeholder=" ..."))
        draw.multiline_text((2 * _GAP_PIXELS, top + height // 2), text, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            grid.paste(image, (_LABEL_PIXELS + _GAP_PIXELS + column * (width + _GAP_PIXELS), top))
    return grid
