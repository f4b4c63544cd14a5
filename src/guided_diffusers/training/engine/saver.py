"""Checkpoints written behind the training's back: it waits for a copy of the state, not for the disk."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup, new_group
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from guided_diffusers.training.engine.checkpoint import save_checkpoint


class Saver:
    """Writes one checkpoint at a time; leaving its context waits for the last.

    Args:
        folder: where checkpoints of this run live.
        keep: how many.
        shared: whether every process has a share of the tensors; then all must make one, and save together.
    """

    def __init__(self, folder: Path, keep: int, shared: bool) -> None:
        self._folder, self._keep = folder, keep
        self._group: ProcessGroup | None = new_group(backend="gloo") if shared else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(
        self, images_seen: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> None:
        """Copy the state and begin to write it, once the checkpoint before is written."""
        self.wait()
        copies = _copied(tensors)
        arguments = (self._folder, images_seen, copies, dict(state), self._keep, self._group)
        self._pending = self._thread.submit(save_checkpoint, *arguments)

    def wait(self) -> None:
        """Wait until nothing is being written; raises what writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait; an error that is on its way is not replaced."""
        try:
            self.wait()
        except BaseException:
            if error is None:
                raise
        finally:
            self._thread.shutdown(wait=False)


def _copied(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies in the CPU's memory, of DTensors as such."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return stager.stage({part: dict(values) for part, values in tensors.items()})
    finally:
        stager.close()
