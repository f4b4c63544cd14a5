"""What drawn images are asked to show: captions and classes of a data set, evenly over its classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.evaluation.images import ImageSet


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What each image to draw is asked to show.

    Attributes:
        texts: A prompt an image; None for a pipeline that takes no text.
        labels: `(count,)` int64, the class each asks for; None where it asks for none, or the data name none.
    """

    texts: list[str] | None = None
    labels: Tensor | None = None


def stratified_prompts(data: ImageSet, count: int, *, texts: bool = True, classes: bool = False) -> Prompts:
    """Captions or classes of a data set for `count` images, its classes in their proportions (to one image).

    The rows, sorted by class, are read at `count` even distances; image i gets caption i modulo the captions
    of its row. Nothing is random: every model and every setting is asked for the same.

    Args:
        data: The data set.
        count: How many images.
        texts: The images are drawn for texts, so captions are needed; their classes are added where known.
        classes: The images are drawn for classes, so labels are needed.

    Raises:
        ValueError: The data set has no captions or no labels where they are needed, or count is below 1.
    """
    check_int("count", count, 1, None)
    if texts:
        remedy = "give a parquet file or a folder with metadata.jsonl"
        data.need("captions", f"the data have no captions; {remedy}")
    if classes:
        data.need("labels", "the pipeline draws classes, and the data have no column `label` of them")
    if not texts and not classes:
        return Prompts()
    rows = len(data)
    order = range(rows) if data.labels is None else torch.argsort(data.labels, stable=True).tolist()
    chosen = [order[(2 * index + 1) * rows // (2 * count)] for index in range(count)]
    captions = [data.captions[row] for row in chosen] if texts else None
    return Prompts(
        texts=captions and [own[index % len(own)] for index, own in enumerate(captions)],
        labels=None if data.labels is None else data.labels[chosen],
    )
