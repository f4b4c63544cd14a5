"""The emoji sets that the emoji script reads: npm packages in a folder, one picture at a time.

Every package lies unpacked in a folder of its own name (`PACKAGES`), a scope left out.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PACKAGES = {
    "emojibase-data": "emojibase-data@17.0.0",
    "emoji-datasource-google": "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter": "emoji-datasource-twitter@16.0.0",
    "fluent-emoji-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "openmoji@17.0.0",
}
"""The folder of each package under --source, and what `npm pack` calls it."""

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


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _datasource(vendor: str) -> Callable[[Path], dict[str, Path]]:
    """Pictures of an emoji-datasource package that are the vendor's own, with no other's in their place."""

    def files(folder: Path) -> dict[str, Path]:
        rows = _json(folder / "emoji.json")
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


def read_emoji(source: Path) -> list[Emoji]:
    """All emoji in Unicode's order, without skin tones, components and letters that make up flags."""
    folder = package_folder(source, "emojibase-data")
    groups, rows = (_json(folder / name) for name in ("meta/groups.json", "en/data.json"))
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
