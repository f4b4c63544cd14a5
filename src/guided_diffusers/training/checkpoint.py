"""Checkpoints to resume from: safetensors and JSON, complete or absent.

A checkpoint is a folder `<images seen, 12 digits>` with `<part>.safetensors` files and `state.json`. It is
written under a temporary name beside its place, flushed to the disk and renamed, so a crash cannot leave half
of one under a final name; leftovers of a crash are removed when the next one is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import REPLACED, TEMPORARY, atomic_folder, recover, remove_folder


def save_checkpoint(
    folder: str | Path,
    images_seen: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    Args:
        folder: where checkpoints of this run live.
        images_seen: the position in training, which names it.
        tensors: by part (the file's name, may contain `/`), tensors by name.
        state: plain data for `state.json`.
        keep: how many to keep, at least 1.

    Raises:
        DiskFullError: there was no room; the checkpoints are what they were.
    """
    folder = Path(folder)
    with atomic_folder(folder / f"{images_seen:012d}") as temporary:
        for part, values in tensors.items():
            file = temporary / f"{part}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(_apart(values), file)
        whole = {**state, "images_seen": images_seen, "parts": list(tensors)}
        (temporary / "state.json").write_text(json.dumps(whole))
    leftovers = [path for pattern in (TEMPORARY, REPLACED) for path in folder.glob(pattern + "*")]
    for path in leftovers + _checkpoints(folder)[:-keep]:
        remove_folder(path)
    return folder / f"{images_seen:012d}"


def _apart(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, as safetensors wants them: tied weights are there twice."""
    found: set[int] = set()
    apart = {}
    for name, value in values.items():
        value = value.detach().cpu().contiguous()
        apart[name] = value.clone() if value.numel() and value.data_ptr() in found else value
        found.add(value.data_ptr())
    return apart


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    folder = Path(folder)
    for aside in folder.glob(REPLACED + "*"):
        recover(folder / aside.name.removeprefix(REPLACED))
    return next(reversed(_checkpoints(folder)), None)


def load_checkpoint(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_checkpoint` was given: tensors by part, and the state.

    Raises:
        FileNotFoundError: naming the file that a damaged checkpoint lacks.
    """
    path = Path(path)
    missing = [path / "state.json"] if not (path / "state.json").exists() else []
    if not missing:
        state = json.loads((path / "state.json").read_text())
        missing = [file for part in state["parts"] if not (file := path / f"{part}.safetensors").exists()]
    if missing:
        raise FileNotFoundError(
            f"checkpoint {path} lacks {missing[0].relative_to(path)}: remove the folder to resume from an "
            "older one"
        )
    return {part: load_file(path / f"{part}.safetensors") for part in state["parts"]}, state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())
