"""Turns Fashion-MNIST's four IDX files into an image-text dataset: train.parquet, test.parquet and a card.

    python training/data/fashion_mnist.py --source /usr/share/datasets/fashion-mnist --output fashion
    python training/data/fashion_mnist.py --classes bag --rows 200 --output bags

The files are those of Debian's package `dataset-fashion-mnist` (the default of `--source`) or of
https://github.com/zalandoresearch/fashion-mnist. Images are padded from 28x28 to 32x32 with black and stored
as lossless PNG; every row carries a list of captions in the column `text`.

References:
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, arXiv:1708.07747.
"""

from __future__ import annotations

import argparse
import gzip
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

CLASSES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""Class names in the order of the dataset's labels."""

TEMPLATES = (
    "{thing}",
    "a photo of {a_thing}",
    "a picture of {a_thing}",
    "an image of {a_thing} on black",
    "a grey product photo of {a_thing}",
    "{a_thing} seen against a black background",
)

_FILES = {"train": "train", "test": "t10k"}

_CARD = """---
license: mit
task_categories: [text-to-image, image-classification]
size_categories: [10K<n<100K]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.parquet}}
  - {{split: test, path: test.parquet}}
---
# Fashion-MNIST with captions

{train:,} training and {test:,} test images of clothing ({classes}), 28x28 grey levels padded to 32x32 with
black, each with {captions} captions made from templates (column `text`), its class name (`name`) and number
(`label`).

Made from Fashion-MNIST (Han Xiao, Kashif Rasul and Roland Vollgraf, Zalando SE, 2017, arXiv:1708.07747;
https://github.com/zalandoresearch/fashion-mnist), MIT licence, copyright 2017 Zalando SE. The captions were
written for this dataset and are under the same licence.
"""


def captions(name: str) -> list[str]:
    """The captions of a class, with the right article and none before the plural ("a photo of trousers")."""
    plural = name == "trousers"
    article = "" if plural else ("an " if name[0] in "aeiou" else "a ")
    return [template.format(thing=name, a_thing=article + name) for template in TEMPLATES]


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes; ValueError names a file that is anything else."""
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not a gzipped IDX file of unsigned bytes: it starts with {data[:4]!r}")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != shape.prod():
        raise ValueError(f"{path} announces {tuple(shape)} values but holds {values.size}: download it again")
    return values.reshape(shape)


def png(image: np.ndarray) -> bytes:
    """One (28, 28) uint8 image as the bytes of a 32x32 PNG of mode L."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.pad(image, 2)).save(buffer, format="PNG")
    return buffer.getvalue()


def build(source: Path, split: str, rows: int | None = None, classes: Collection[str] = CLASSES) -> Dataset:
    """The dataset of one split ("train" or "test"): of its rows of `classes` the first `rows`, if given.

    Columns: image, label, name, text (list of captions).
    """
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        path = source / f"{_FILES[split]}-{kind}-ubyte.gz"
        if not path.is_file():
            raise FileNotFoundError(
                f"--source {source} has no {path.name}: install Debian's dataset-fashion-mnist, or download "
                "the four files from https://github.com/zalandoresearch/fashion-mnist"
            )
        found.append(read_idx(path))
    chosen = np.isin(found[1], [CLASSES.index(name) for name in classes]).nonzero()[0][:rows]
    images, labels = (values[chosen] for values in found)
    features = Features(
        image=Image(), label=ClassLabel(names=list(CLASSES)), name=Value("string"), text=List(Value("string"))
    )
    texts = [captions(name) for name in CLASSES]
    columns = {
        "image": [
            {"bytes": png(image), "path": f"{split}-{row:05d}.png"}
            for row, image in zip(chosen, images, strict=True)
        ],
        "label": labels.tolist(),
        "name": [CLASSES[label] for label in labels],
        "text": [texts[label] for label in labels],
    }
    return Dataset.from_dict(columns, features=features)


def main() -> None:
    """Parses the command line and writes the two parquet files and the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, required=True, help="folder to write, made if absent")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of each split")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES, help="only these")
    chosen.add_argument("--without", nargs="+", choices=CLASSES, default=(), help="all classes but these")
    arguments = parser.parse_args()
    classes = [name for name in arguments.classes if name not in arguments.without]
    arguments.output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in _FILES:
        dataset = build(arguments.source, split, arguments.rows, classes)
        dataset.to_parquet(arguments.output / f"{split}.parquet")
        counts[split] = len(dataset)
    (arguments.output / "README.md").write_text(
        _CARD.format(captions=len(TEMPLATES), classes=", ".join(classes), **counts)
    )
    print(f"{arguments.output}: {counts['train']} training and {counts['test']} test rows")


if __name__ == "__main__":
    main()
