"""Puts two or three emoji on one picture, with captions of count, place and size: parquet files.

    python training/data/emoji.py --fetch --source emoji-packages --output data/emoji-256 --size 256
    python training/data/emoji_scenes.py --emoji data/emoji-256 --output data/scenes-256

The emoji are training rows of the dataset, all of a scene in one style; `--size` makes the pictures smaller
by area filtering. Scene i is a function of (--seed, i) and the dataset: a larger --count only adds scenes.

What is held out is a function of what stands together, by a hash: 5% of the pairs of emoji, in whatever place
or size, and 5% of the counts ("two apples"), in every style. A scene with any of them is of the split
`test`; the others are `train`. Captions say left and right: train on no mirror images.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path

from _emoji_layout import PIXELS
from _emoji_scenes import FEATURES, Scenes, held_out
from datasets import Dataset


def main() -> None:
    """Parses the command line and writes train.parquet and test.parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", type=Path, required=True, help="folder of emoji.py --size 256")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made if absent")
    parser.add_argument("--count", type=int, default=16000, help="how many scenes, of both splits together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=PIXELS, choices=(64, 128, PIXELS), help="pixels a side")
    arguments = parser.parse_args()
    source = arguments.emoji / "train.parquet"
    if not source.is_file():
        parser.error(f"--emoji {arguments.emoji} has no train.parquet: make it with emoji.py --size {PIXELS}")
    scenes = Scenes(Dataset.from_parquet(str(source)), arguments.seed)
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for number in range(arguments.count):
        row = scenes.row(number, arguments.size)
        splits["test" if any(map(held_out, row["combinations"])) else "train"].append(row)
    shutil.copytree(arguments.emoji / "LICENCES", arguments.output / "LICENCES", dirs_exist_ok=True)
    for name, rows in splits.items():
        Dataset.from_list(rows, features=FEATURES).to_parquet(arguments.output / f"{name}.parquet")
        print(f"{name}: {len(rows)} scenes, {dict(Counter(row['kind'] for row in rows))}")


if __name__ == "__main__":
    main()
