"""Checkpoints to resume from: safetensors and JSON, complete or absent.

A checkpoint is a folder `<images seen, 12 digits>` with `<part>.safetensors` files and `state.json`. It is
written under a temporary name beside its place, flushed to the disk and renamed, so a crash cannot leave half
of one under a final name; leftovers of a crash are removed when the next one is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guided_diffusers.core.checks import check_that, one_line
from guided_diffusers.store.files import REPLACED, TEMPORARY, atomic_folder, recover, remove_folder

Content = TypeVar("Content")


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
    ours = [path for path in _checkpoints(folder) if (path / "state.json").exists()]
    for path in leftovers + ours[:-keep]:
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
    """The newest checkpoint of a run, or None of a run that has written none.

    Raises:
        ValueError: nothing in the folder is a checkpoint; what is there is named.
    """
    folder = Path(folder)
    for aside in folder.glob(REPLACED + "*"):
        recover(folder / aside.name.removeprefix(REPLACED))
    found, others = _checkpoints(folder), sorted(folder.glob("[!.]*"))
    if not found and others:
        raise ValueError(
            f"{others[0]} is no checkpoint (those have the images seen for a name, in 12 digits), and there "
            "is no other: move it away to begin anew, or name another output_dir"
        )
    return found[-1] if found else None


def load_checkpoint(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_checkpoint` was given: tensors by part, and the state.

    Raises:
        FileNotFoundError: naming the file that a damaged checkpoint lacks.
        ValueError: naming the file that cannot be read, or is another checkpoint's.
    """
    path = Path(path)
    state = _read(path, "state.json", _state)
    return {part: _read(path, f"{part}.safetensors", load_file) for part in state["parts"]}, state


def _read(path: Path, name: str, read: Callable[[Path], Content]) -> Content:
    """A file of a checkpoint, or an error that says what can be done without it."""
    try:
        return read(path / name)
    except (SafetensorError, OSError, ValueError) as error:
        older = [other for other in _checkpoints(path.parent) if int(other.name) < int(path.name)]
        instead = f"go on from {older[-1].name}" if older else "begin anew"
        remedy = f"remove the folder to {instead}, or name another output_dir"
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"checkpoint {path} lacks {name}: {remedy}") from error
        text = f"checkpoint {path} is damaged: {name} cannot be read ({one_line(error)}): {remedy}"
        raise ValueError(text) from error


def _state(file: Path) -> dict[str, Any]:
    state = json.loads(file.read_text())
    parts = state.get("parts") if isinstance(state, dict) else None
    check_that(isinstance(parts, list), "parts", parts, "a list of the checkpoint's")
    seen, wanted = state.get("images_seen"), int(file.parent.name)
    check_that(seen == wanted, "images_seen", seen, f"{wanted}, the folder's name")
    return state


def _checkpoints(folder: Path) -> list[Path]:
    """What is named like a checkpoint, the newest last."""
    named = (path for path in folder.glob("[0-9]*") if path.name.isdecimal())
    return sorted(named, key=lambda path: int(path.name))
