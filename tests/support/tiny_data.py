"""Tiny data sets, as people have them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset

SLICE = Path(__file__).parents[1] / "data" / "fashion_slice.parquet"
"""64 real images of Fashion-MNIST, padded to 32x32, with six captions each, `label` and `name`."""


def fashion(cache: Path, **config: Any) -> ImageTextDataset:
    """The slice, grey."""
    return ImageTextDataset(
        DataConfig(**{"path": str(SLICE), "channels": 1, "cache_dir": str(cache), **config})
    )


def png(pixels: np.ndarray | int = 0) -> bytes:
    """A PNG file of an array, or of 8x8 pixels of a grey level."""
    buffer = io.BytesIO()
    pixels = np.full((8, 8), pixels, np.uint8) if isinstance(pixels, int) else pixels
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def slices(folder: Path) -> Path:
    """A folder with the slice as its train and as its test split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}.parquet").write_bytes(SLICE.read_bytes())
    return folder


def small_slice(path: Path) -> Path:
    """The slice of real data at the tiny pipelines' 16 x 16 pixels, written there."""
    rows = pq.read_table(SLICE).to_pylist()
    for row in rows:
        pixels = Image.open(io.BytesIO(row["image"]["bytes"])).resize((16, 16))
        row["image"] = {"bytes": png(np.asarray(pixels))}
    pq.write_table(arrow.Table.from_pylist(rows), path)
    return path


def parquet(path: Path, pixels: Any, **columns: Sequence[Any]) -> None:
    """A file of images, of an array or tensor of uint8 each, with other columns beside them."""
    images = [Image.fromarray(np.asarray(image)) for image in pixels]
    Dataset.from_dict({"image": images, **columns}).to_parquet(path)


def tars(folder: Path, rows: Sequence[dict[str, bytes | str]], each: int) -> Path:
    """WebDataset tars of so many rows, a cell a column; the pattern of their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows), each):
        with tarfile.open(folder / f"train-{first // each:02d}.tar", "w") as tar:
            for number, row in enumerate(rows[first : first + each], first):
                for column, cell in row.items():
                    data = cell.encode() if isinstance(cell, str) else cell
                    member = tarfile.TarInfo(f"{number:04d}.{column}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder / f"train-{{00..{(len(rows) - 1) // each:02d}}}.tar"


def sliced_tars(folder: Path) -> Path:
    """The slice as four tars, with `png`, `txt` and `cls`; a picture in the third is no picture."""
    rows = [
        {"png": row["image"]["bytes"], "txt": row["text"][0], "cls": str(row["label"])}
        for row in pq.read_table(SLICE).to_pylist()
    ]
    rows[40]["png"] = b"no picture"
    return tars(folder, rows, 16)


class Terminal(io.StringIO):
    """A stream as a terminal."""

    def isatty(self) -> bool:
        return True


def captioned(folder: Path, captions: Sequence[str]) -> Path:
    """An image folder: a grey 16x16 image for each caption, of two shades by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, caption in enumerate(captions):
        shade = np.full((16, 16), 200 * (number % 2) + number, dtype=np.uint8)
        Image.fromarray(shade).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "text": caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def classed(folder: Path, labels: Sequence[Any], kind: Any = None) -> Path:
    """A parquet file of grey 16x16 images, a class each; `kind` is the column's type, by default text."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(np.full((16, 16), 20 * row, dtype=np.uint8)) for row in range(len(labels))]
    features = Features(image=ImageFeature(), label=kind or Value("string"))
    rows = Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
    rows.to_parquet(folder / "train.parquet")
    return folder
