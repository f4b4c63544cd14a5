"""What goes beside the emoji dataset: its card, and the licences of the sets that it is made from."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from _emoji_packages import PACKAGES, package_folder, packages_of
from _emoji_styles import STYLES, Style

_CARD = """---
license: [apache-2.0, cc-by-4.0, mit, cc-by-sa-4.0]
language: en
task_categories: [text-to-image]
size_categories: [{magnitude}]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.parquet}}
  - {{split: test, path: test.parquet}}
  - {{split: test_pairs, path: test_pairs.parquet}}
---
# Emoji in {count} styles, with captions

{size}x{size} colour pictures of emoji on white, with captions made from templates (`text`), name, keywords,
category, subgroup, style, character, hexcode, licence and attribution. No skin tones.

| split | rows | what |
|---|---|---|
{table}

`test` holds {test_emoji:,} emoji that no other split shows; the emoji of `test_pairs` are in `train` in other
styles. {dropped:,} training rows with the very picture of a held-out row were left out.

| style | licence | from | rows |
|---|---|---|---|
{styles}

Each row is under the licence of its style; the folder LICENCES holds the texts or says where they are.
Changes: {changes} The
designs of Noto's flags are in the public domain. Names and keywords are Unicode CLDR's, from emojibase-data
(MIT licence); captions are made of them by templates. The packages read: {packages}.
"""
_COUNTS = {4: "four", 8: "eight"}
_CHANGES = "laid over white, resized to 64x64 (Noto and Twemoji: as they came), OpenMoji drawn from SVG."
_LARGE_CHANGES = """drawn from SVG at 256x256 (Fluent 3D: as it came), laid over white, made smaller by area.
The column `colour`, which some captions name, is the main colour where one is plain, else ""."""

_MICROSOFT_LICENCE = """MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""Of Fluent Emoji; the npm package names the licence and leaves its text out."""


def write_licences(output: Path, source: Path, styles: Mapping[str, Style]) -> None:
    """The folder LICENCES: the text of each style's licence, or whom to name and where the text is."""
    folder = output / "LICENCES"
    folder.mkdir(exist_ok=True)
    for name, style in styles.items():
        file = folder / f"{name.replace(' ', '-')}.txt"
        text = package_folder(source, style.package) / "LICENSE.txt"
        if style.licence == "Apache-2.0":
            shutil.copyfile(Path(__file__).resolve().parents[2] / "LICENSE", file)  # the same, word for word
        elif style.licence == "MIT":
            file.write_text(_MICROSOFT_LICENCE)
        elif style.licence.startswith("CC-") and text.is_file():
            shutil.copyfile(text, file)
        else:
            kind = style.licence.removeprefix("CC-").removesuffix("-4.0").lower()
            url = f"https://creativecommons.org/licenses/{kind}/4.0/legalcode"
            file.write_text(f"{style.attribution}\n{url}\n", encoding="utf-8")
    shutil.copyfile(package_folder(source, "emojibase-data") / "LICENSE", folder / "emojibase-data.txt")


def write_card(
    output: Path,
    source: Path,
    styles: Mapping[str, Style],
    splits: dict[str, list[dict]],
    dropped: int,
    size: int,
) -> None:
    """README.md, and the licences in LICENCES."""
    write_licences(output, source, styles)
    what = {"train": "training", "test": "held-out emoji, all styles", "test_pairs": "held-out pairs"}
    by_style = Counter(row["style"] for rows in splits.values() for row in rows)
    card = _CARD.format(
        magnitude="1K<n<10K" if by_style.total() < 10_000 else "10K<n<100K",
        count=_COUNTS[len(styles)],
        size=size,
        table="\n".join(f"| {name} | {len(rows):,} | {what[name]} |" for name, rows in splits.items()),
        styles="\n".join(
            f"| {name} | {style.licence} | {style.attribution} | {by_style[name]:,} |"
            for name, style in styles.items()
        ),
        test_emoji=len({row["hexcode"] for row in splits["test"]}),
        dropped=dropped,
        changes=_CHANGES if styles is STYLES else _LARGE_CHANGES,
        packages=", ".join(f"`{PACKAGES[name]}`" for name in packages_of(styles.values())),
    )
    (output / "README.md").write_text(card, encoding="utf-8")
