"""Pictures for accelerate's trackers: those that validation has just written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image


def log_pictures(accelerator: Accelerator, folder: Path, seen: int) -> None:
    """Give the pictures of a position to the trackers that take any (TensorBoard, Weights & Biases).

    Args:
        accelerator: has the trackers.
        folder: `validation/`; of its pictures those are meant whose name begins with the position.
        seen: the position, in images.
    """
    if not accelerator.trackers:
        return
    pictures = {}
    for path in sorted(folder.glob(f"{seen:012d}*.png")):
        name = path.stem.removeprefix(f"{seen:012d}").strip("-") or "all"
        with Image.open(path) as image:
            pictures[f"validation/{name}"] = np.asarray(image.convert("RGB"))[None]
    for tracker in accelerator.trackers:
        if pictures and hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=seen, **layout)
