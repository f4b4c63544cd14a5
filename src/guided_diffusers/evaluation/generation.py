"""Many images, drawn in chunks by any number of processes, resumable, the same whoever drew them.

Chunk k holds the images of the global indices [k b, (k + 1) b); process p of P draws the chunks p, p + P, ...
A chunk is drawn as one batch whatever the number of processes, so its pixels do not depend on it, and it is
written to a temporary name and renamed, so a file that exists is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from guided_diffusers.core.checks import check_choice, check_int
from guided_diffusers.evaluation.images import check_pixels
from guided_diffusers.store.files import write_atomically
from guided_diffusers.store.provenance import OneProcess, Processes, write_or_check

FORMATS = ("npz", "png")
_SETTINGS = "generation.json"


def generate_images(
    draw: Callable[[Sequence[int]], Tensor],
    count: int,
    folder: Path | str,
    *,
    settings: Mapping[str, Any],
    batch_size: int = 100,
    image_format: str = "npz",
    processes: Processes = OneProcess(),  # noqa: B008 - frozen
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Draw the images that are not there yet.

    Args:
        draw: Global indices -> images `(len(indices), channels, height, width)`, uint8. Image i must be a
            function of i alone, up to the rounding of its batch.
        count: How many images in all.
        folder: Where they go: `chunk-00000.npz`, ... or `000000.png`, ...
        settings: JSON values that say what the images are of: written beside them and compared on resuming.
        batch_size: Images of a chunk; part of the settings.
        image_format: "npz" (key `images`, `(b, channels, height, width)` uint8) or "png", a file an image.
        processes: Who shares the work, such as `accelerate.PartialState()`.
        on_images: Called with the number of images of each chunk that is done.

    Raises:
        ValueError: The folder holds images of other settings, or an argument is out of range.
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        check_int(name, value, 1, None)
    check_choice("image_format", image_format, FORMATS)
    folder = Path(folder)
    made_of = {**settings, "batch_size": batch_size, "image_format": image_format}
    write_or_check(folder / _SETTINGS, made_of, "images", processes)
    for number, indices in enumerate(chunks(count, batch_size)):
        if number % processes.num_processes == processes.process_index:
            if not _is_there(folder, number, indices, image_format):
                _write(
                    folder,
                    number,
                    indices,
                    check_pixels("what draw gave", draw(indices), count=len(indices)).cpu(),
                    image_format,
                )
            if on_images is not None:
                on_images(len(indices))
    processes.wait_for_everyone()


def chunks(count: int, batch_size: int) -> Iterator[range]:
    """The global indices of each chunk."""
    for first in range(0, count, batch_size):
        yield range(first, min(first + batch_size, count))


def generated_images(folder: Path | str, count: int) -> Tensor:
    """The first `count` images of a folder that `generate_images` filled, `(count, c, h, w)` uint8, in order.

    Raises:
        FileNotFoundError: If they are not all there.
    """
    folder = Path(folder)
    stored = json.loads((folder / _SETTINGS).read_text())
    parts = []
    for number, indices in enumerate(chunks(count, stored["batch_size"])):
        for path in _paths(folder, number, indices, stored["image_format"]):
            parts.append(_read(path))
    return torch.cat(parts)[:count]


def _paths(folder: Path, number: int, indices: range, image_format: str) -> list[Path]:
    if image_format == "npz":
        return [folder / f"chunk-{number:05d}.npz"]
    return [folder / f"{index:06d}.png" for index in indices]


def _is_there(folder: Path, number: int, indices: range, image_format: str) -> bool:
    """Whether a chunk is whole; one of fewer images, of an earlier and smaller count, is not."""
    paths = _paths(folder, number, indices, image_format)
    return all(path.is_file() for path in paths) and (
        image_format == "png" or len(_read(paths[0])) >= len(indices)
    )


def _write(folder: Path, number: int, indices: range, images: Tensor, image_format: str) -> None:
    arrays = images.numpy()
    for row, path in enumerate(_paths(folder, number, indices, image_format)):
        if image_format == "npz":
            write_atomically(path, lambda at: _save_npz(at, arrays))
        else:
            picture = _picture(arrays[row])
            write_atomically(path, lambda at, picture=picture: picture.save(at, format="png"))


def _save_npz(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez_compressed(file, images=images)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))


def _read(path: Path) -> Tensor:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file["images"])
    array = np.asarray(Image.open(path))
    return torch.from_numpy((array[None] if array.ndim == 2 else array.transpose(2, 0, 1)).copy())[None]
