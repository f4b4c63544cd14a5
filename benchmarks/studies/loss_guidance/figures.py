"""Draws the study's pictures: what was known beside what was made of it, and images of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from guided_diffusers.evaluation.grid import labelled_grid, to_pictures

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
Record = Mapping[str, Any]


def draw(results: Mapping[str, Any], kept: Sequence[Tensor], real: Tensor, prefix: Path) -> None:
    """Write `PREFIX-inverse.png` and `PREFIX-classes.png`.

    Args:
        results: What measure.py wrote.
        kept: The first images of each point, in [-1, 1].
        real: The test images of the inverse problems.
        prefix: Folder and beginning of the names.
    """
    records = results["points"]
    half = real.clone()
    half[..., real.shape[-1] // 2 :] = 0
    seen = {"inpainting": half, "super-resolution": F.interpolate(F.avg_pool2d(real, 4), scale_factor=4)}
    rows, labels = [to_pictures(real)], ["test images"]
    for problem, known in seen.items():
        rows.append(to_pictures(known))
        labels.append(f"{problem}: what is known")
        for through in ("x0", "denoised"):
            best = best_of(results, problem, through)
            rows.append(to_pictures(kept[records.index(best)]))
            labels.append(f"through {through}, known to {best['figures']['known']['value']:.1f} dB")
    labelled_grid(rows, labels, min_pixels=64).save(f"{prefix}-inverse.png")

    classes = [row for row, record in enumerate(records) if record["point"]["problem"] == "class"]
    pictures = [to_pictures(kept[row]) for row in classes]
    labels = [name_of(records[row]["point"]) for row in classes]
    labelled_grid(pictures, labels, 64, CLASSES, "asked for").save(f"{prefix}-classes.png")


def name_of(point: Mapping[str, Any]) -> str:
    """A point of the classes in few words."""
    if point["scale"] == 0:
        return "unguided"
    limit = "" if point["max_norm"] else ", no max_norm"
    return f"{point['through']}, s = {point['scale']:g}, {point['recurrence']} times{limit}"


def best_of(results: Mapping[str, Any], problem: str, through: str) -> Record:
    """The record of a problem that the judge agrees with most, or of which the known is known best."""
    figure = "agreement" if problem == "class" else "known"
    records = [record for record in results["points"] if record["point"]["problem"] == problem]
    records = [record for record in records if record["point"]["through"] == through]
    return max(records, key=lambda record: record["figures"][figure]["value"])
