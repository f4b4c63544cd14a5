"""The sets of emoji pictures: whose they are, under which licence, and where packages have each picture.

`STYLES` are the four of the first release, of 64 pixels; `LARGE_STYLES` are the eight of 256, most of them
SVG in Iconify's packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from _emoji_iconify import drawings, drawings_by_name, plain, read_json


@dataclass(frozen=True, kw_only=True)
class Style:
    """One set of pictures.

    Attributes:
        package: Its folder under --source.
        licence: SPDX identifier.
        attribution: Whom to name, and where the set comes from.
        files: The picture of each emoji by its plain hexcode, read from the package's folder: a file, or the
            text of an SVG.
        needs: Folders of other packages that `files` reads.
        without: Subgroups and plain hexcodes that the package has but that are left out.
    """

    package: str
    licence: str
    attribution: str
    files: Callable[[Path], Mapping[str, Path | str]]
    needs: tuple[str, ...] = ()
    without: frozenset[str] = field(default_factory=frozenset)


def _datasource(vendor: str) -> Callable[[Path], dict[str, Path]]:
    """Pictures of an emoji-datasource package that are the vendor's own, with no other's in their place."""

    def files(folder: Path) -> dict[str, Path]:
        rows = read_json(folder / "emoji.json")
        at = folder / "img" / vendor / "64"
        return {plain(row["unified"]): at / row["image"] for row in rows if row[f"has_img_{vendor}"]}

    return files


def _folder(pattern: str) -> Callable[[Path], dict[str, Path]]:
    """Pictures that are files named by hexcode."""
    return lambda folder: {plain(path.stem): path for path in sorted(folder.glob(pattern))}


STYLES = {
    "noto": Style(
        package="emoji-datasource-google",
        licence="Apache-2.0",
        attribution="Noto Emoji, Google LLC, https://github.com/googlefonts/noto-emoji",
        files=_datasource("google"),
    ),
    "twemoji": Style(
        package="emoji-datasource-twitter",
        licence="CC-BY-4.0",
        attribution="Twemoji, Twitter, Inc and other contributors, https://github.com/jdecked/twemoji",
        files=_datasource("twitter"),
    ),
    "fluent 3d": Style(
        package="fluent-emoji-3d",
        licence="MIT",
        attribution="Fluent Emoji, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        files=_folder("assets/*.webp"),
        # Microsoft publishes none of these: the package has flags and families of an origin it does not tell.
        without=frozenset({"country-flag", "subdivision-flag", "family", "1F46A"}),
    ),
    "openmoji": Style(
        package="openmoji",
        licence="CC-BY-SA-4.0",
        attribution="OpenMoji, the OpenMoji project of HfG Schwäbisch Gmünd, https://openmoji.org",
        files=_folder("color/svg/*.svg"),
    ),
}

LARGE_STYLES = {
    "noto": replace(STYLES["noto"], package="iconify-noto", files=drawings()),
    "twemoji": replace(STYLES["twemoji"], package="iconify-twemoji", files=drawings()),
    "fluent 3d": STYLES["fluent 3d"],
    "openmoji": replace(STYLES["openmoji"], package="iconify-openmoji", files=drawings()),
    "fluent": replace(
        STYLES["fluent 3d"],
        package="iconify-fluent-emoji",
        files=drawings("iconify-fluent-emoji-flat"),  # which has the same names, and says whose they are
        needs=("iconify-fluent-emoji-flat",),
        without=frozenset(),
    ),
    "fluent flat": replace(
        STYLES["fluent 3d"], package="iconify-fluent-emoji-flat", files=drawings(), without=frozenset()
    ),
    "emojione": Style(
        package="iconify-emojione",
        licence="CC-BY-4.0",
        attribution="Emoji One 2.3, Emoji One, https://github.com/EmojiTwo/emojitwo",
        files=drawings_by_name,
    ),
    "streamline": Style(
        package="iconify-streamline-emojis",
        licence="CC-BY-4.0",
        attribution="Streamline Emojis, Streamline, https://github.com/webalys-hq/streamline-vectors",
        files=drawings_by_name,
        without=frozenset({"1F983"}),  # its "turkey" is the country's flag
    ),
}
"""The styles at 256 pixels; those that `STYLES` has too keep their names, and so their splits."""

STYLES_IN_WORDS = {
    "noto": ("a noto emoji", "a google noto emoji"),
    "twemoji": ("a twemoji", "a flat twemoji"),
    "fluent 3d": ("a 3d emoji", "a fluent 3d emoji"),
    "openmoji": ("an openmoji", "an outlined openmoji"),
    "fluent": ("a fluent emoji", "a glossy fluent emoji"),
    "fluent flat": ("a flat fluent emoji", "a fluent flat emoji"),
    "emojione": ("an emojione", "a flat emojione"),
    "streamline": ("a streamline emoji", "an outlined streamline emoji"),
}
"""How captions speak of a style; the first is that of a row's first caption."""
