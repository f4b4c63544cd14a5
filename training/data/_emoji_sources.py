"""The emoji and their pictures, one at a time, from the packages of `_emoji_packages.py`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _emoji_iconify import plain, read_json
from _emoji_packages import LARGE_STYLES, PACKAGES, STYLES, Style, package_folder
from PIL import Image

PIXELS = 64
LARGE_PIXELS = 256
_RENDERED_PIXELS = 256
_COMPONENTS = "component"


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji without skin tone, as emojibase-data has it: `hexcode` is "1F600" or "1F468-200D-1F33E"."""

    hexcode: str
    character: str
    name: str
    keywords: tuple[str, ...]
    category: str
    subgroup: str


def read_emoji(source: Path) -> list[Emoji]:
    """All emoji in Unicode's order, without skin tones, components and letters that make up flags."""
    folder = package_folder(source, "emojibase-data")
    groups, rows = (read_json(folder / name) for name in ("meta/groups.json", "en/data.json"))
    rows = [row for row in rows if groups["groups"].get(str(row.get("group")), _COMPONENTS) != _COMPONENTS]
    return [_emoji(row, groups) for row in sorted(rows, key=lambda row: row["order"])]


def _emoji(row: Mapping[str, Any], groups: Mapping[str, Any]) -> Emoji:
    return Emoji(
        hexcode=row["hexcode"],
        character=row["emoji"],
        name=row["label"],
        keywords=tuple(row.get("tags", ())),
        category=groups["groups"][str(row["group"])],
        subgroup=groups["subgroups"][str(row["subgroup"])],
    )


def pictures(source: Path, style: str, emoji: list[Emoji]) -> Iterator[tuple[Emoji, bytes]]:
    """The emoji that a style has, each with its PNG."""
    for one, path in _of_style(source, STYLES[style], emoji):
        yield one, on_white(path)


def _of_style(source: Path, style: Style, emoji: list[Emoji]) -> Iterator[tuple[Emoji, Path | str]]:
    """The emoji that a style has, each with its file or the text of its SVG."""
    files = style.files(package_folder(source, style.package))
    for one in emoji:
        code = plain(one.hexcode)
        if code in files and not {code, one.subgroup} & style.without:
            yield one, files[code]


def large_pictures(source: Path, style: str, emoji: list[Emoji]) -> Iterator[tuple[Emoji, Image.Image]]:
    """The emoji that a style of `LARGE_STYLES` has, each with its 256x256 RGBA picture.

    A picture is drawn once and lies in the folder `drawn` of `source` from then on: a run that was stopped
    goes on where it was, and another size costs no drawing. Delete the folder to draw anew.
    """
    chosen = LARGE_STYLES[style]
    folder = source / "drawn" / PACKAGES[chosen.package].replace("/", "+")
    folder.mkdir(parents=True, exist_ok=True)
    for one, picture in _of_style(source, chosen, emoji):
        path = folder / f"{plain(one.hexcode)}.png"
        if not path.is_file():
            partial = path.with_suffix(".partial")
            drawn(picture).save(partial, format="PNG")
            partial.replace(path)
        with Image.open(path) as image:
            yield one, image.convert("RGBA")


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
