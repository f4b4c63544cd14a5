"""Which prompts images are drawn for: captions of a data set, evenly over its classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.evaluation.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """One prompt an image to draw.

    Attributes:
        texts: The prompts.
        labels: `(count,)` int64, the class each asks for; None where the data name no classes.
    """

    texts: list[str]
    labels: Tensor | None

    def __len__(self) -> int:
        """How many images they are for."""
        return len(self.texts)


def stratified_prompts(data: ImageSet, count: int) -> Prompts:
    """`count` captions of a data set, its classes in their proportions (to one image).

    The rows, sorted by class, are read at `count` even distances; image i gets caption i modulo the captions
    of its row. Nothing is random: every model and every setting gets the same prompts.

    Raises:
        ValueError: The data set has no captions, or count is below 1.
    """
    data.need("captions", "the data have no captions; give a parquet file or a folder with metadata.jsonl")
    if count < 1:
        raise ValueError(f"count is {count}; allowed: at least 1")
    rows = len(data.captions)
    order = range(rows) if data.labels is None else torch.argsort(data.labels, stable=True).tolist()
    chosen = [order[(2 * index + 1) * rows // (2 * count)] for index in range(count)]
    return Prompts(
        texts=[data.captions[row][index % len(data.captions[row])] for index, row in enumerate(chosen)],
        labels=None if data.labels is None else data.labels[chosen],
    )
