"""`guided-diffusers generate --from-image`: the picture that a PNG says it is, once more.

What the image says is untrusted. A scheduler's name is one of the command line's, a checkpoint is found and
checked as a given one is, guidance is made of known terms; configurations are compared, never built from.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guided_diffusers.cli.drawing import (
    SCHEDULERS,
    draw_call,
    grid_of,
    identify,
    load_pipeline,
    local_folder,
    save_png,
    summary,
)

if TYPE_CHECKING:
    from PIL import Image

    from guided_diffusers.pipelines.record import ImageRecord
    from guided_diffusers.pipelines.safe import SafePipeline


def repeat(
    path: Path, output: Path, checkpoint: str | None, batch_size: int | None, device: str | None
) -> dict[str, Any]:
    """Draw what a PNG of `generate` shows, an image or a grid, and save it as <its name>-again.png.

    Args:
        path: The PNG.
        output: The folder to write to.
        checkpoint: Where its checkpoint is now; None: where it was.
        batch_size: Images drawn at once; None: as many as then, which makes the pixels the same.
        device: Where to draw; None: where it was drawn, if there is such a device.

    Returns:
        What `--json` prints; `identical` is whether the pixels are.

    Raises:
        ValueError: The file has no record that can be used, the checkpoint is not there or has changed, or
            its scheduler has.
    """
    from guided_diffusers.pipelines.record import made_with, read_record

    record = read_record(path)
    if record.scheduler is not None and record.scheduler not in SCHEDULERS:
        raise ValueError(
            f"{path} was drawn by the scheduler {record.scheduler[:80]!r}, which is none of "
            f"{', '.join(SCHEDULERS)}"
        )
    pipeline = _load(path, record, checkpoint, device)
    if batch_size is not None:
        record = replace(record, batch_size=batch_size)
        record = record if record.position is None else record.image(record.position)
    then, here = record.made_with, _same_threads(record.made_with, made_with(pipeline.device))
    record = replace(record, checkpoint=checkpoint or record.checkpoint, made_with=here)
    images = draw_call(pipeline, record)
    picture = grid_of(images, record) if record.position is None else images[record.position]
    target = output / f"{path.stem}-again.png"
    identical = _compare(path, picture, then, here)
    save_png(picture, record, target)
    return _summary(path, record, target, identical)


def _load(path: Path, record: ImageRecord, checkpoint: str | None, device: str | None) -> SafePipeline:
    """The pipeline of the record's checkpoint, at its commit, if it is what it was."""
    import torch

    from guided_diffusers.pipelines.record import differences, scheduler_config

    place, (kind, _, commit) = checkpoint or record.checkpoint, record.fingerprint.partition(":")
    if not re.fullmatch("sha256:[0-9a-f]{64}|commit:[0-9a-f]{40}", record.fingerprint):
        raise ValueError(f"the metadata of {path} cannot be used: fingerprint is {record.fingerprint[:80]!r}")
    folder = _folder(place)
    if kind == "sha256" and folder is None:
        raise ValueError(
            f"{path} was drawn by the checkpoint in {place[:200]!r}, which is not here: say where it is "
            "with --checkpoint"
        )
    if kind == "commit" and folder is not None:
        raise ValueError(
            f"{path} was drawn by a repository of the Hub, {record.checkpoint[:200]!r}, and {place[:200]!r} "
            "is a folder: name the repository with --checkpoint"
        )
    if device is None and (record.made_with.get("device") == "cpu" or not torch.cuda.is_available()):
        device = "cpu"
    revision = commit if kind == "commit" else None
    pipeline = load_pipeline(place, record.scheduler, device, revision)
    if (found := identify(place, revision)) != record.fingerprint:
        raise ValueError(
            f"the checkpoint {place[:200]!r} is not the one that drew {path}: its fingerprint is "
            f"{found[:19]}..., and was {record.fingerprint[:19]}...: say with --checkpoint where that one is"
        )
    then = {"scheduler": record.scheduler_class, **record.scheduler_config}
    now = {"scheduler": type(pipeline.scheduler).__name__, **scheduler_config(pipeline.scheduler)}
    if changes := differences(then, now):
        raise ValueError(f"the scheduler is not the one that drew {path}: {'; '.join(changes[:3])}")
    return pipeline


def _folder(checkpoint: str) -> Path | None:
    try:
        return local_folder(checkpoint)
    except ValueError:
        return None


def _same_threads(then: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """On a CPU, compute with as many threads as then, where there are as many: their number rounds sums."""
    import torch

    threads = then.get("threads")
    if here["device"] == "cpu" and type(threads) is int and 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
        return {**here, "threads": threads}
    return here


def _compare(path: Path, picture: Image.Image, then: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether the pixels are those of the file; if not, one line says by how much, and what may be why."""
    import numpy as np
    from PIL import Image

    from guided_diffusers.pipelines.record import differences

    with Image.open(path, formats=["PNG"]) as original:
        if (original.size, original.mode) != (picture.size, picture.mode):
            print(f"note: {path} has been edited: it is {original.size} {original.mode}", file=sys.stderr)
            return False
        pixels = np.asarray(original).astype(int)
    most = int(np.abs(pixels - np.asarray(picture).astype(int)).max())
    if most:
        reasons = "; ".join(differences(then, here)[:4]) or "it was edited, or the batch is another"
        print(f"note: pixels differ by up to {most} of 255 from {path}: {reasons}", file=sys.stderr)
    return most == 0


def _summary(path: Path, record: ImageRecord, target: Path, identical: bool) -> dict[str, Any]:
    shown = () if record.position is None else (record.jobs[record.position],)
    result = summary(replace(record, jobs=shown), [target] * len(shown), None if shown else target)
    return {"from_image": str(path), "identical": identical, **result}
