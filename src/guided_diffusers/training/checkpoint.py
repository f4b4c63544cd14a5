"""Checkpoints to resume from: safetensors and JSON, complete or absent.

A checkpoint is a folder `<images seen, 12 digits>` with `<part>.safetensors` files and `state.json`. It is written
under a temporary name in the same folder, flushed to the disk and renamed, so a crash cannot leave half of one under
a final name; leftovers of a crash are removed when the next one is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

TEMPORARY = ".writing-"
REPLACED = ".replaced-"


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to write into that takes the name `path` (replacing what was there) once all is on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = path.parent / (TEMPORARY + path.name), path.parent / (REPLACED + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    for item in [*temporary.rglob("*"), temporary]:
        _flush(item)
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    temporary.rename(path)
    _flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


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
    """
    folder = Path(folder)
    with atomic_folder(folder / f"{images_seen:012d}") as temporary:
        for part, values in tensors.items():
            file = temporary / f"{part}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, file)
        (temporary / "state.json").write_text(json.dumps({**state, "images_seen": images_seen, "parts": list(tensors)}))
    for leftover in [*folder.glob(TEMPORARY + "*"), *folder.glob(REPLACED + "*"), *_checkpoints(folder)[:-keep]]:
        shutil.rmtree(leftover)
    return folder / f"{images_seen:012d}"


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(_checkpoints(Path(folder))), None)


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
        raise FileNotFoundError(f"checkpoint {path} lacks {missing[0].name}: remove the folder to resume from an older one")
    return {part: load_file(path / f"{part}.safetensors") for part in state["parts"]}, state


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as flat tensors, `<parameter index>.<name>`, and plain data (the rest)."""
    whole = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, values in whole["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{index}.{name}"] = value
    return tensors, {"plain": plain, "param_groups": whole["param_groups"]}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_tensors` gave, each tensor in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **state["plain"]}.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        whole.setdefault(int(index), {})[name] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in state["param_groups"]]
    optimizer.load_state_dict({"state": whole, "param_groups": groups})


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
