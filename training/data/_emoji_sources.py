"""The emoji and their pictures, one at a time, from the packages of `_emoji_packages.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _emoji_drawing import drawn, on_white
from _emoji_iconify import plain, read_json
from _emoji_packages import PACKAGES, package_folder
from _emoji_styles import LARGE_STYLES, STYLES, Style
from PIL import Image

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
