"""One run at a time in a folder.

The lock is the system's, on an open file (flock): it goes with the process that holds it, however that ends,
so a run that was killed leaves nothing behind that another would wait for. The file that carries it stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"


class FolderInUseError(RuntimeError):
    """Another run writes into the folder."""


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which is made, for one run.

    Where the system or its file system has no such locks, nothing is held.

    Raises:
        FolderInUseError: another run holds it; its process is named.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise FolderInUseError(
                f"output_dir {folder} is in use by another run (process {holder}): wait for it, stop it, or "
                "name another folder"
            ) from error
        except OSError as error:  # a file system without locks
            logger.warning("%s is not locked against a second run: %s", folder, error)
        with suppress(OSError):  # the name is for messages alone, and the disk may be full
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
