"""What goes beside the emoji dataset: its card, and the licences of the sets that it is made from."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from _emoji_packages import PACKAGES, STYLES, package_folder

_CARD = """---
license: [apache-2.0, cc-by-4.0, mit, cc-by-sa-4.0]
language: en
task_categories: [text-to-image]
size_categories: [1K<n<10K]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.parquet}}
  - {{split: test, path: test.parquet}}
  - {{split: test_pairs, path: test_pairs.parquet}}
---
# Emoji in four styles, with captions

64x64 colour pictures of emoji on white, with captions made from templates (`text`), name, keywords, category,
subgroup, style, character, hexcode, licence and attribution. No skin tones.

| split | rows | what |
|---|---|---|
{table}

`test` holds {test_emoji:,} emoji that no other split shows; the emoji of `test_pairs` are in `train` in other
styles. {dropped:,} training rows with the very picture of a held-out row were left out.

| style | licence | from | rows |
|---|---|---|---|
{styles}

Each row is under the licence of its style; the folder LICENCES holds the texts or says where they are.
Changes: laid over white, resized to 64x64 (Noto and Twemoji: as they came), OpenMoji drawn from SVG. The
designs of Noto's flags are in the public domain. Names and keywords are Unicode CLDR's, from emojibase-data
(MIT licence); captions are made of them by templates. The packages read: {packages}.
"""

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


def write_card(output: Path, source: Path, splits: dict[str, list[dict]], dropped: int) -> None:
    """README.md, and the licences in LICENCES."""
    folder = output / "LICENCES"
    folder.mkdir(exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    shutil.copyfile(root / "LICENSE", folder / "noto.txt")  # the same Apache License 2.0
    for name, file in (("openmoji", "LICENSE.txt"), ("emojibase-data", "LICENSE")):
        shutil.copyfile(package_folder(source, name) / file, folder / f"{name}.txt")
    (folder / "fluent-3d.txt").write_text(_MICROSOFT_LICENCE)
    twemoji = f"{STYLES['twemoji'].attribution}\nhttps://creativecommons.org/licenses/by/4.0/legalcode\n"
    (folder / "twemoji.txt").write_text(twemoji)
    what = {"train": "training", "test": "held-out emoji, all styles", "test_pairs": "held-out pairs"}
    by_style = Counter(row["style"] for rows in splits.values() for row in rows)
    card = _CARD.format(
        table="\n".join(f"| {name} | {len(rows):,} | {what[name]} |" for name, rows in splits.items()),
        styles="\n".join(
            f"| {name} | {style.licence} | {style.attribution} | {by_style[name]:,} |"
            for name, style in STYLES.items()
        ),
        test_emoji=len({row["hexcode"] for row in splits["test"]}),
        dropped=dropped,
        packages=", ".join(f"`{spec}`" for spec in PACKAGES.values()),
    )
    (output / "README.md").write_text(card, encoding="utf-8")
