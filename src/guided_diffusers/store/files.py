"""Files and folders that are whole or not there, and a full disk that says where it is full.

What is written goes under a temporary name beside its place, is flushed to the disk and renamed. A folder
cannot take the place of another in one step, so there are two renames: the old one steps aside, the new one
takes the name. Stopped between them, `recover` gives the old one its name back.

The errors of a full disk come as OSError without a path, or from safetensors as text alone; `room_for` turns
them into one DiskFullError, which names the path and what is still whole.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".writing-"
REPLACED = ".replaced-"
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class DiskFullError(OSError):
    """There was no room for a file.

    Args:
        path: what could not be written.
        code: the system's errno: ENOSPC, EDQUOT or EFBIG.
        kept: what is still whole, and what to do.
    """

    def __init__(self, path: str | Path, code: int, kept: str = "") -> None:
        limit = "the limit of a file's size is reached" if code == errno.EFBIG else "the disk is full"
        text = f"{limit}: {path} could not be written ({os.strerror(code)})"
        super().__init__(f"{text}; {kept}" if kept else text)
        self.path, self.errno, self.kept = path, code, kept


def full_disk(error: BaseException | None) -> int | None:
    """The errno of a full disk in an error or in what caused it; None of another error."""
    while error is not None:
        told = re.search(r"os error (\d+)", str(error))  # as Rust writes it
        code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if code in _FULL:
            return code
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def room_for(path: str | Path, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn the errors of a full disk into a DiskFullError.

    Args:
        path: what is written.
        kept: says, when it comes to that, what is still whole and what to do.

    Raises:
        DiskFullError: there was no room. One that comes from within keeps its path.
    """
    try:
        yield
    except Exception as error:
        code = full_disk(error)
        if code is None or (isinstance(error, DiskFullError) and (kept is None or error.kept)):
            raise
        where = error.path if isinstance(error, DiskFullError) else path
        raise DiskFullError(where, code, kept() if kept else "") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to write into; it replaces `path` once all is on the disk.

    Raises:
        DiskFullError: there was no room; `path` is what it was.
    """
    path = Path(path)
    temporary, replaced = path.parent / (TEMPORARY + path.name), path.parent / (REPLACED + path.name)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for item in [*temporary.rglob("*"), temporary]:
                _flush(item)
        except Exception:  # it may be the disk that is full
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    try:
        temporary.rename(path)
    except OSError:
        recover(path)
        raise
    _flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(path: str | Path) -> None:
    """Give a folder its name back if `atomic_folder` was stopped between its two renames."""
    path = Path(path)
    if not path.exists():
        with suppress(FileNotFoundError):  # there is nothing to recover, or another process was first
            (path.parent / (REPLACED + path.name)).rename(path)


def remove_folder(path: Path) -> None:
    """Remove a folder; stopped half-way, what is left of it has no name that anybody reads."""
    aside = path if path.name.startswith((TEMPORARY, REPLACED)) else path.parent / (TEMPORARY + path.name)
    if aside != path:
        path.rename(aside)
    shutil.rmtree(aside)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it: it is whole or not there.

    Args:
        path: the file; its folder must be there.
        write: writes a file that it is given the path of.

    Raises:
        DiskFullError: there was no room; `path` is what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path):
            write(temporary)
            _flush(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomically(path: Path, value: Any) -> None:
    """Write JSON, keys in their order, as `write_atomically` does."""
    write_atomically(path, lambda at: at.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n"))


def write_array_atomically(path: Path, array: np.ndarray) -> None:
    """Write an .npy file, as `write_atomically` does."""

    def write(at: Path) -> None:
        with at.open("wb") as file:  # given a name, NumPy would append .npy to it
            np.save(file, array)

    write_atomically(path, write)


def visible_files(path: str) -> list[str]:
    """The files within a folder, relative to it, in the order of their names; links are followed once."""
    found, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        within = os.path.relpath(folder, path)
        prefix = "" if within == "." else f"{within}/"
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [prefix + name for name in names if not name.startswith(".")]
    for name in found:
        if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"{path!r} has a file {ascii(name)}, whose name is not UTF-8: rename it")
    return sorted(found)


def cache_folder(given: str | Path | None = None) -> Path:
    """Where what is computed once is kept, by training and evaluation.

    It is the given folder; else $GUIDED_DIFFUSERS_CACHE; else `guided_diffusers` in the user's cache
    ($XDG_CACHE_HOME, or ~/.cache).
    """
    given = given or os.environ.get("GUIDED_DIFFUSERS_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guided_diffusers"


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped array, zeros in an .npy file, whose room on the disk is taken.

    Such a file has holes. Where the disk has no room for what is later written into them the system ends the
    process without a word: so the room is taken now, where the system can.

    Raises:
        DiskFullError: there is not enough.
    """
    with room_for(path):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
