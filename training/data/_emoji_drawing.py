"""Emoji's files and SVG as pictures: drawn once at 256 pixels, or at 64 as in the first release."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

PIXELS = 64
LARGE_PIXELS = 256
_RENDERED_PIXELS = 256


def drawn(picture: Path | str) -> Image.Image:
    """A picture file, or the text of an SVG, as 256x256 RGBA; what is not square in the middle of a square.

    SVG is drawn by resvg: cairosvg knows no blur and moves what has an inner shadow, which is most of Fluent.

    Raises:
        ImportError: An SVG, and resvg is not installed.
    """
    with Image.open(io.BytesIO(_resvg(picture)) if isinstance(picture, str) else picture) as image:
        image = image.convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    size = (LARGE_PIXELS, LARGE_PIXELS)
    return square if square.size == size else square.resize(size, Image.Resampling.LANCZOS)


def over_white(image: Image.Image, pixels: int) -> Image.Image:
    """A square RGBA picture over white, as RGB of `pixels` a side, by area filtering."""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB").resize((pixels, pixels), Image.Resampling.BOX)


def webp(image: Image.Image) -> bytes:
    """The bytes of a lossless WebP file, about half of a PNG's."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=True, method=1, quality=30)  # quality of the search
    return buffer.getvalue()


def on_white(path: Path) -> bytes:
    """A picture file (SVG or anything that PIL reads) as the bytes of a 64x64 RGB PNG, laid over white.

    What is not square is put into the middle of a white square first. Sizes are changed with Lanczos' filter.

    Raises:
        ImportError: An SVG, and cairosvg is not installed.
    """
    with Image.open(io.BytesIO(_rendered(path)) if path.suffix == ".svg" else path) as image:
        image = image.convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.convert("RGB")
    if side != PIXELS:
        square = square.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    square.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _resvg(svg: str) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("drawing SVG needs resvg: pip install guided-diffusers[data]") from error
    size = {"width": LARGE_PIXELS, "height": LARGE_PIXELS}
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, **size))


def _rendered(path: Path) -> bytes:
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the package is there, the library cairo is not
        raise ImportError(
            f"drawing {path.name} needs cairosvg: pip install guided-diffusers[data] ({error})"
        ) from error
    return cairosvg.svg2png(url=str(path), output_width=_RENDERED_PIXELS, output_height=_RENDERED_PIXELS)
