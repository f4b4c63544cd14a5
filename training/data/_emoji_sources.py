"""The emoji and their pictures, one at a time, from the packages of `_emoji_packages.py`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _emoji_packages import STYLES, package_folder, plain, read_json
from PIL import Image

PIXELS = 64
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
    chosen = STYLES[style]
    files = chosen.files(package_folder(source, chosen.package))
    for one in emoji:
        code = plain(one.hexcode)
        if code in files and not {code, one.subgroup} & chosen.without:
            yield one, on_white(files[code])


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


def _rendered(path: Path) -> bytes:
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the package is there, the library cairo is not
        raise ImportError(
            f"drawing {path.name} needs cairosvg: pip install guided-diffusers[data] ({error})"
        ) from error
    return cairosvg.svg2png(url=str(path), output_width=_RENDERED_PIXELS, output_height=_RENDERED_PIXELS)
