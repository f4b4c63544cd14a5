"""What a run leaves of its networks beside checkpoints: snapshots, averages, validation and the export."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.store.files import atomic_folder
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.devices import Replicated, Sharded
from guided_diffusers.training.engine.ema import ExponentialMovingAverage
from guided_diffusers.training.engine.log import Meter
from guided_diffusers.training.engine.posthoc import PosthocAverages
from guided_diffusers.training.engine.publish import Publisher
from guided_diffusers.training.engine.task import Task
from guided_diffusers.training.engine.trackers import log_pictures

logger = logging.getLogger(__name__)


class Outputs:
    """Writes a run's networks, whole; every process calls each method, and the main one writes.

    Args:
        task: has the networks.
        config: the run's folder, and what is pushed to the Hub.
        accelerator: says which process this is, and has the trackers.
        devices: gathers networks that are split.
        ema: the averaged networks, which are those that are written.
        posthoc: the averages for any length afterwards.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        accelerator: Accelerator,
        devices: Replicated | Sharded,
        ema: ExponentialMovingAverage,
        posthoc: PosthocAverages,
    ) -> None:
        self._task, self._config, self._accelerator = task, config, accelerator
        self._devices, self._ema, self._posthoc = devices, ema, posthoc
        self._folder = Path(config.output_dir)
        pushes = config.push_to_hub is not None and accelerator.is_main_process
        self._publisher = Publisher(config) if pushes else None

    def _all(self, everywhere: bool) -> Mapping[str, nn.Module]:
        """All modules by name, whole, averaged where there is an average."""
        return self._devices.whole({**self._task.modules, **self._ema.modules}, everywhere)

    def snapshot(self, seen: int) -> None:
        """Keep the averaged networks of this position: weak networks for autoguidance."""
        modules = self._devices.whole(self._ema.modules, everywhere=False)
        if not self._accelerator.is_main_process:
            return
        with atomic_folder(self._folder / "snapshots" / str(seen)) as folder:
            if write := getattr(self._task, "snapshot", None):
                write(folder, modules)
                return
            for name, module in modules.items():
                module.save_pretrained(folder / name)

    def keep_averages(self, seen: int) -> None:
        """Keep the post-hoc averages of this position."""
        whole = {
            length: self._devices.whole(average.modules, everywhere=False)
            for length, average in self._posthoc.averages.items()
        }
        if self._accelerator.is_main_process:
            self._posthoc.keep(seen, whole)

    def validate(self, seen: int) -> dict[str, Any]:
        """Let the task measure or draw into validation/; the metrics, of the main process."""
        together = getattr(self._task, "validates_together", False)
        modules, folder = self._all(everywhere=True), self._folder / "validation"
        if not (together or self._accelerator.is_main_process):
            return {}
        folder.mkdir(exist_ok=True)
        meter = Meter()
        try:
            meter.add(self._task.validate(seen, modules, folder) or {})
        except NonFiniteError as error:  # of what was drawn; the weights are what the loss says
            logger.warning("after %d images the validation shows nothing: %s", seen, error)
        if self._accelerator.is_main_process:
            log_pictures(self._accelerator, folder, seen)
        return meter.read()

    def export(self, seen: int, last: bool = False) -> None:
        """Write final/ anew, with the averaged weights; push it where that is due."""
        modules = self._all(everywhere=False)
        if not self._accelerator.is_main_process:
            return
        with atomic_folder(self._folder / "final") as folder:
            self._task.save(folder, modules)
        logger.info("after %d images: %s", seen, self._folder / "final")
        every = self._config.export_every_images
        if self._publisher is not None and (last or seen // every % self._config.push_every == 0):
            self._publisher.offer(self._folder / "final", seen)

    def finish(self) -> None:
        """Wait for what is being pushed."""
        if self._publisher is not None:
            self._publisher.finish()
