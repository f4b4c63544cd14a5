"""What a terminal shows of a run while it goes: a bar, and an early line that says how long it will take."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from guided_diffusers.training.engine.log import in_words

logger = logging.getLogger(__name__)

EARLY_SECONDS = 5.0  # after so long a line says how far the run is, if no record has


class Progress:
    """How far a run is. It is the main process's alone, and needs no other process.

    Args:
        seen: Images seen before.
        total: Images in all.
        device: Where the work is done, which may lag behind.
    """

    def __init__(self, seen: int, total: int, device: torch.device) -> None:
        self._first, self._total, self._device = seen, total, device
        self._start, self._told = time.monotonic(), False
        self.bar = tqdm(
            total=total,
            initial=seen,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def said(self) -> None:
        """A line has said how far the run is: none is owed."""
        self._told = True

    def advance(self, seen: int) -> None:
        """A step has ended at a position in training."""
        self.bar.update(seen - self.bar.n)
        if self._told or time.monotonic() - self._start < EARLY_SECONDS:
            return
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        speed = (seen - self._first) / (time.monotonic() - self._start)
        logger.info(in_words({"images_per_second": round(speed, 1)}, seen, self._total, speed))
        self.said()


@contextmanager
def shown(progress: Progress | None) -> Iterator[None]:
    """While the run goes, log lines stand above the bar, where there is one."""
    if progress is None or progress.bar.disable:
        yield
        return
    with logging_redirect_tqdm(), progress.bar:
        yield
