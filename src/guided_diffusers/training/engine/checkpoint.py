"""Checkpoints to resume from: safetensors and JSON, complete or absent.

A checkpoint is a folder `<images seen, 12 digits>` with `state.json` and the tensors by part: in files
`<part>.safetensors` or, where every process has a share of them, in `shards/`, a file a process, which
torch.distributed.checkpoint wrote: any number of processes reads either. It is written under a temporary name
beside its place, flushed to the disk and renamed, so a crash cannot leave half of one under a final name;
leftovers of a crash are removed when the next one is written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import ProcessGroup, barrier, get_rank
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata

from guided_diffusers.core.checks import check_that, one_line
from guided_diffusers.store.files import REPLACED, TEMPORARY, atomic_folder, recover, remove_folder

Content = TypeVar("Content")
SHARDS = "shards"


def save_checkpoint(
    folder: str | Path,
    images_seen: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    group: ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    Args:
        folder: where checkpoints of this run live.
        images_seen: the position in training, which names it.
        tensors: by part (the file's name, may contain `/`), tensors by name.
        state: plain data for `state.json`.
        keep: how many to keep, at least 1.
        group: the processes, on CPUs, which all call this and of which each has a share of the tensors; None:
            this process has all.

    Raises:
        DiskFullError: there was no room; the checkpoints are what they were.
    """
    folder = Path(folder)
    path = folder / f"{images_seen:012d}"
    first = group is None or get_rank(group) == 0
    with atomic_folder(path) if first else nullcontext(folder / (TEMPORARY + path.name)) as temporary:
        whole = {**state, "images_seen": images_seen, "parts": list(tensors)}
        if group is None:
            for part, values in tensors.items():
                file = temporary / f"{part}.safetensors"
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(_apart(values), file)
        else:
            _save_shards(temporary / SHARDS, tensors, group)
        if first:
            whole |= {SHARDS: sorted(file.name for file in (temporary / SHARDS).glob("*"))} if group else {}
            (temporary / "state.json").write_text(json.dumps(whole))
    if first:
        leftovers = [path for pattern in (TEMPORARY, REPLACED) for path in folder.glob(pattern + "*")]
        ours = [path for path in _checkpoints(folder) if (path / "state.json").exists()]
        for old in leftovers + ours[:-keep]:
            remove_folder(old)
    return path


def _save_shards(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], group: ProcessGroup) -> None:
    """Every process its share; without pickle."""
    barrier(group)  # the folder is the first process's to make
    named = {f"{part}/{name}": value for part, values in tensors.items() for name, value in values.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(named, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


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


class Checkpoint:
    """A checkpoint that is there: its state, and what tensors it has; they are read where they are wanted.

    Attributes:
        path: its folder.
        state: the plain data.
        parts: by part, the tensors by name, on the meta device.

    Raises:
        FileNotFoundError: naming the file that a damaged checkpoint lacks.
        ValueError: naming the file that cannot be read, or is another checkpoint's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state = _read(self.path, "state.json", _state)
        names: list[str] = self.state["parts"]
        shards = [f"{SHARDS}/{name}" for name in self.state.get(SHARDS, [])]
        self._files = {part: shards or [f"{part}.safetensors"] for part in names}
        self._prefix = {part: f"{part}/" if shards else "" for part in names}
        stored: dict[tuple[str, ...], Metadata] = {}
        for part, files in self._files.items():
            if tuple(files) not in stored:
                for file in files:
                    _read(self.path, file, lambda at: safe_open(at, "pt"))  # names what is damaged
                stored[tuple(files)] = self._reader(part).read_metadata()
        self.parts = {part: self._shapes(part, stored[tuple(files)]) for part, files in self._files.items()}

    def _reader(self, part: str) -> _Reader:
        return _Reader([self.path / file for file in self._files[part]])

    def _shapes(self, part: str, stored: Metadata) -> dict[str, Tensor]:
        prefix = self._prefix[part]
        return {
            name.removeprefix(prefix): torch.empty(item.size, dtype=item.properties.dtype, device="meta")
            for name, item in stored.state_dict_metadata.items()
            if name.startswith(prefix)
        }

    def fill(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Read tensors of a part into tensors of their shapes, in place: of a DTensor, the local share."""
        named = {self._prefix[part] + name: value.detach() for name, value in tensors.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each reads its own
            dcp.load(named, storage_reader=self._reader(part), no_dist=True)

    def read(self, part: str) -> dict[str, Tensor]:
        """All tensors of a part, whole, on the CPU."""
        found = {name: torch.empty_like(value, device="cpu") for name, value in self.parts[part].items()}
        self.fill(part, found)
        return found


class _Reader(dcp.HuggingFaceStorageReader):
    """Reads tensors from some safetensors files."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(str(files[0].parent))
        self.fs = _Files(files)


class _Files(FileSystem):
    """A file system of some files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def ls(self, path: str | os.PathLike) -> list[str]:
        """The files, whatever folder is asked for."""
        return [str(file) for file in self.files]


def load_checkpoint(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """All tensors of a checkpoint, whole, by part, and its state; raises what `Checkpoint` does."""
    checkpoint = Checkpoint(path)
    return {part: checkpoint.read(part) for part in checkpoint.parts}, checkpoint.state


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
