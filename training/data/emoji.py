"""Turns openly licensed emoji sets into a colour image-text dataset: parquet files and a card.

    python training/data/emoji.py --fetch --source emoji-packages --output emoji-256 --size 256
    python training/data/emoji.py --fetch --source emoji-packages --output emoji

With `--size`, eight sets at 256 pixels, or at 128 or 64 by area filtering from the same drawings; captions
say the style and, where it is plain, the main colour. Without it, the first release to the bit: four at 64.

`--fetch` gets what `--source` lacks, which is for each package of `_emoji_packages.PACKAGES` the same as

    npm pack openmoji@17.0.0 && tar xzf openmoji-17.0.0.tgz && mv package emoji-packages/openmoji

A row is one emoji in one style, on white. SVG is drawn by resvg, in the first release by cairosvg (both in
the extra `data`). Skin tones are left out: five more of nearly the same picture each. Flags are in, but not
in the Fluent styles, whose authors publish none, nor in Noto with `--size`, whose package has none.

What is held out is a function of the emoji alone, by a hash: 5% of all emoji, in every style, are the split
`test`; 5% of the (emoji, style) pairs of the others are `test_pairs`, whose emoji are trained on in other
styles. A training row whose picture is that of a held-out row, to the bit, is left out (the flag of Bouvet
Island is Norway's); with `--size` they are compared at 64 pixels, so that every size has the same rows.
Emoji that are alike (man and woman running) are not kept together.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _emoji_card import write_card
from _emoji_colours import main_colour
from _emoji_drawing import PIXELS, over_white, webp
from _emoji_iconify import plain
from _emoji_names import captions, fraction, large_captions
from _emoji_packages import check_licences, fetch
from _emoji_sources import Emoji, large_pictures, pictures, read_emoji
from _emoji_styles import LARGE_STYLES, STYLES, Style
from datasets import Dataset, Features, Image, List, Value
from PIL.Image import Resampling

HELD_OUT = 0.05
SPLITS = ("train", "test", "test_pairs")

_TEXT, _TEXTS = Value("string"), List(Value("string"))
FEATURES = Features(
    image=Image(), text=_TEXTS, name=_TEXT, keywords=_TEXTS, category=_TEXT, subgroup=_TEXT, style=_TEXT,
    emoji=_TEXT, hexcode=_TEXT, licence=_TEXT, attribution=_TEXT,
)  # fmt: skip
LARGE_FEATURES = Features(FEATURES | {"colour": _TEXT})
SIZES = (64, 128, 256)
_EMPTY = 0.01
"""A drawing with less than this share of opaque pixels went wrong."""


def split_of(hexcode: str, style: str) -> str:
    """The split of an emoji in a style: a function of the two, and for "test" of the hexcode alone."""
    code = plain(hexcode)
    if fraction("held-out emoji", code) < HELD_OUT:
        return "test"
    return "test_pairs" if fraction("held-out pair", f"{code} {style}") < HELD_OUT else "train"


def row_of(emoji: Emoji, style: str, source: Style) -> dict[str, Any]:
    """One row with the columns of FEATURES but for `image` and `text`."""
    return {
        "name": emoji.name, "keywords": list(emoji.keywords),
        "category": emoji.category, "subgroup": emoji.subgroup,
        "style": style, "emoji": emoji.character, "hexcode": emoji.hexcode,
        "licence": source.licence, "attribution": source.attribution,
    }  # fmt: skip


def build(source: Path, styles: tuple[str, ...] = tuple(STYLES)) -> tuple[dict[str, list[dict]], int]:
    """The rows of every split, in Unicode's order and then by style, and how many twins were left out."""
    emoji, rows = read_emoji(source), []
    for style in styles:
        for one, png in pictures(source, style, emoji):
            key = f"{plain(one.hexcode)} {style}"
            text = captions(one.name, one.subgroup, one.keywords, style, key)
            image = {"bytes": png, "path": f"{key.replace(' ', '-')}.png"}
            rows.append(row_of(one, style, STYLES[style]) | {"image": image, "text": text})
    return _in_splits(emoji, rows, [row["image"]["bytes"] for row in rows])


def build_large(
    source: Path, size: int, styles: tuple[str, ...] = tuple(LARGE_STYLES)
) -> tuple[dict[str, list[dict]], int]:
    """As `build`, of `LARGE_STYLES` at `size` pixels, with the column `colour`: "" where no colour is plain.

    A drawing that is all but empty went wrong: it is named and left out.
    """
    check_licences(source, {style: LARGE_STYLES[style] for style in styles})
    emoji, rows, pixels = read_emoji(source), [], []
    for style in styles:
        for one, picture in large_pictures(source, style, emoji):
            if (np.asarray(picture)[..., 3] >= 128).mean() < _EMPTY:
                print(f"left out, for its drawing is all but empty: {one.name}, {style}", flush=True)
                continue
            key = f"{plain(one.hexcode)} {style}"
            colour = main_colour(np.asarray(picture.resize((PIXELS, PIXELS), Resampling.BOX)))
            text = large_captions(one.name, one.subgroup, one.keywords, style, key, colour)
            image = {"bytes": webp(over_white(picture, size)), "path": f"{key.replace(' ', '-')}.webp"}
            columns = {"image": image, "text": text, "colour": colour or ""}
            rows.append(row_of(one, style, LARGE_STYLES[style]) | columns)
            pixels.append(over_white(picture, PIXELS).tobytes())
        print(f"{style}: drawn", flush=True)
    return _in_splits(emoji, rows, pixels)


def _in_splits(
    emoji: list[Emoji], rows: list[dict], pixels: list[bytes]
) -> tuple[dict[str, list[dict]], int]:
    """The rows of every split but training rows whose `pixels` a held-out row has; and how many those are."""
    place = {one.hexcode: number for number, one in enumerate(emoji)}
    splits: dict[str, list[tuple[dict, bytes]]] = {name: [] for name in SPLITS}
    for pair in sorted(zip(rows, pixels, strict=True), key=lambda pair: place[pair[0]["hexcode"]]):
        splits[split_of(pair[0]["hexcode"], pair[0]["style"])].append(pair)
    held_out = {what for name in SPLITS[1:] for _, what in splits[name]}
    kept = [pair for pair in splits["train"] if pair[1] not in held_out]
    dropped = len(splits["train"]) - len(kept)
    return {name: [row for row, _ in pairs] for name, pairs in (splits | {"train": kept}).items()}, dropped


def main() -> None:
    """Parses the command line and writes the parquet files, the card and the licences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the unpacked npm packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made if absent")
    parser.add_argument("--size", type=int, choices=SIZES, help="the eight sets at so many pixels a side")
    parser.add_argument("--fetch", action="store_true", help="npm pack what --source lacks (160 MB at most)")
    arguments = parser.parse_args()
    large = arguments.size is not None
    styles = LARGE_STYLES if large else STYLES
    if arguments.fetch:
        fetch(arguments.source, styles.values())
    splits, dropped = build_large(arguments.source, arguments.size) if large else build(arguments.source)
    arguments.output.mkdir(parents=True, exist_ok=True)
    features = LARGE_FEATURES if large else FEATURES
    for name, rows in splits.items():
        Dataset.from_list(rows, features=features).to_parquet(arguments.output / f"{name}.parquet")
        counts = Counter(row["style"] for row in rows)
        print(f"{name}: {len(rows)} rows, {len({row['hexcode'] for row in rows})} emoji, {dict(counts)}")
    print(f"left out of train as the very picture of a held-out row: {dropped}")
    write_card(arguments.output, arguments.source, styles, splits, dropped, arguments.size or PIXELS)


if __name__ == "__main__":
    main()
