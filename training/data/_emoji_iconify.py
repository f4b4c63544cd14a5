"""Emoji drawings of Iconify's packages: the text of an SVG by the emoji's plain hexcode.

Such a package is a few JSON files: `icons.json` holds a body for every name, and `chars.json`, where it is
not empty, the name of every hexcode. The two sets without it are looked up by the names of emojibase-data.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OLD_NAMES = {
    "a-button": "a-button-blood-type",
    "ab-button": "ab-button-blood-type",
    "b-button": "b-button-blood-type",
    "direct-hit": "bullseye",
    "dizzy-face": "face-with-crossed-out-eyes",
    "exclamation-mark": "red-exclamation-mark",
    "heavy-heart-exclamation": "heart-exclamation",
    "hugging-face": "smiling-face-with-open-hands",
    "man-and-woman-holding-hands": "woman-and-man-holding-hands",
    "o-button": "o-button-blood-type",
    "pouting-face": "enraged-face",
    "question-mark": "red-question-mark",
    "two-men-holding-hands": "men-holding-hands",
    "two-women-holding-hands": "women-holding-hands",
    "up-text-button": "up-button",
}
"""Names that CLDR once gave, and what it calls the emoji now."""

_ANIMALS = set("bear fox frog hamster lion panda unicorn wolf".split())
"""Those whose emoji is a face, which CLDR no longer says."""


def plain(hexcode: str) -> str:
    """A hexcode that every package can be looked up by: upper case, no variation selector FE0F."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_json(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_text(encoding="utf-8"))


def drawings(names_of: str | None = None) -> Callable[[Path], dict[str, str]]:
    """A reader of the SVG texts of a package by `chars.json`, its own or that of the package `names_of`."""

    def read(folder: Path) -> dict[str, str]:
        icons = read_json(folder / "icons.json")
        chars = read_json((folder if names_of is None else folder.parent / names_of) / "chars.json")
        return {plain(code): _svg(icons, name) for code, name in chars.items() if name in icons["icons"]}

    return read


def drawings_by_name(folder: Path) -> dict[str, str]:
    """The SVG texts of a package without `chars.json`: by the icons' names and their aliases."""
    rows = read_json(folder.parent / "emojibase-data" / "en" / "data.json")
    codes = {_slug(row["label"]): plain(row["hexcode"]) for row in rows}
    icons = read_json(folder / "icons.json")
    others: dict[str, list[str]] = {name: [] for name in icons["icons"]}
    for alias, what in icons.get("aliases", {}).items():
        others[what["parent"]].append(alias)
    found: dict[str, str] = {}
    for name in sorted(icons["icons"]):  # of mouse-1 and mouse-2 the first
        code = next((codes[one] for one in _spellings(name, others[name]) if one in codes), None)
        if code is not None and code not in found:
            found[code] = _svg(icons, name)
    return found


def _spellings(name: str, aliases: list[str]) -> list[str]:
    """How CLDR may spell the name of an icon now."""
    spellings = []
    for one in (name, *aliases):
        one = one.replace("flag-for-", "flag-")
        for base in (one, re.sub(r"-\d$", "", one)):  # drawings of one emoji are numbered, and keycaps are
            base = _OLD_NAMES.get(base, base)
            spellings += [base, re.sub("^flag-(.*-flags?)$", r"\1", base)]
            spellings += [base.replace("cat-face", "cat"), f"flag-{base}"]
            if base.removesuffix("-face") in _ANIMALS:
                spellings.append(base.removesuffix("-face"))
    return spellings


def _slug(name: str) -> str:
    """A name as Iconify spells it: "flag: Åland Islands" is "flag-aland-islands"."""
    name = name.lower().replace("’", "").replace("&", "and").replace("*", "asterisk").replace("#", "pound")
    name = unicodedata.normalize("NFKD", name)
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[\u0300-\u036f]", "", name)).strip("-")


def _svg(icons: dict[str, Any], name: str) -> str:
    """An icon's body as a whole SVG; what is not square stands in the middle of a square."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{left:g} {top:g} {side} {side}">{icon["body"]}</svg>'
    )
