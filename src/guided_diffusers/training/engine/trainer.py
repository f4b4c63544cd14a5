"""The training loop that every script shares.

A task (`task.Task`) says what is trained and on what; the engine owns the order of the data, gradient steps,
averaged weights, checkpoints and the log. Everything random is a function of (seed, position), where the
position of a sample is the number of images seen before it: so the result does not depend on the number of
processes or on accumulation, and resuming - the same command again - gives the weights that an uninterrupted
run gives, to the bit (one process, CPU, float32).

How modules lie on devices, whole or in shards, is said in `devices`; a task's modules stay the objects that
they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.randomness import seed_for
from guided_diffusers.store.files import recover, room_for
from guided_diffusers.training.engine.batches import Batches
from guided_diffusers.training.engine.checkpoint import Checkpoint, latest_checkpoint
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.devices import place
from guided_diffusers.training.engine.ema import ExponentialMovingAverage
from guided_diffusers.training.engine.lock import folder_lock
from guided_diffusers.training.engine.log import JsonLines, Meter, flatten, in_words
from guided_diffusers.training.engine.outputs import Outputs
from guided_diffusers.training.engine.parallel import lost_process
from guided_diffusers.training.engine.posthoc import PosthocAverages
from guided_diffusers.training.engine.precision import Way, autocast, choose, lay_out, settled
from guided_diffusers.training.engine.progress import Progress, shown
from guided_diffusers.training.engine.saver import Saver
from guided_diffusers.training.engine.schedule import learning_rate_factor
from guided_diffusers.training.engine.settings import record_config, recorded, with_training
from guided_diffusers.training.engine.setup import (
    make_accelerator,
    make_optimizer,
    recompute_activations,
    refuse_sharding,
)
from guided_diffusers.training.engine.state import check_fits, restore_training, training_state
from guided_diffusers.training.engine.task import Metrics, Task

__all__ = ["Metrics", "Task", "Trainer", "make_accelerator", "make_optimizer", "train"]

logger = logging.getLogger(__name__)


def train(
    task: Task, config: TrainingConfig, full_config: Any = None, accelerator: Accelerator | None = None
) -> None:
    """Train, or go on from the newest checkpoint of `config.output_dir`.

    Leaves there: config.json, log.jsonl, checkpoints/, snapshots/<images>/<module>/, averages/,
    validation/, what `task.begin` writes, where there is such, and final/ (what `task.save` writes).

    Args:
        task: see `task.Task`.
        config: the shared part of the script's configuration.
        full_config: the script's whole configuration, saved beside the weights; `config` when not given.
        accelerator: when the script has made its own.

    Raises:
        ValueError: when the batch cannot be split evenly over processes and accumulation steps, the newest
            checkpoint is damaged or another run's, accelerate is set to split networks in a way that is not
            ours, or settings do not go together. Nothing has then been written.
        FileNotFoundError: when the newest checkpoint lacks a file.
        FloatingPointError: when a loss is not finite, at the next log record.
        FolderInUseError: when another run writes into `config.output_dir`.
        DiskFullError: when there is no room for a file; the checkpoint before is whole.
        ProcessLostError: when another process of the run has ended or does not answer.
    """
    Trainer(task, config, full_config or config, accelerator or make_accelerator(config)).run()


class Trainer:
    """The loop and its state; `train` is the way in."""

    def __init__(
        self, task: Task, config: TrainingConfig, full_config: Any, accelerator: Accelerator
    ) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.folder = Path(config.output_dir)
        processes, parts = accelerator.num_processes, config.gradient_accumulation
        allowed = f"a multiple of processes x gradient_accumulation, {processes} x {parts}"
        check_that(config.batch_size % (processes * parts) == 0, "batch_size", config.batch_size, allowed)
        refuse_sharding(accelerator)
        self.devices = place(task, config, accelerator)
        averaged = {name: task.modules[name] for name in task.averaged}
        half_life, ramp_up, copied = config.ema_half_life_images, config.ema_ramp_up, self.devices.copied
        self.ema = ExponentialMovingAverage(averaged, half_life, ramp_up, copied)
        fits, allowed = not hasattr(task, "snapshot"), "0 where parts of networks are trained (LoRA)"
        check_that(fits or not config.posthoc_ema, "training.posthoc_ema", config.posthoc_ema, allowed)
        self.posthoc = PosthocAverages(averaged, config, copied)
        if config.gradient_checkpointing:
            for module in task.modules.values():
                recompute_activations(module)
        for optimizer in task.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.optimizers = {name: accelerator.prepare_optimizer(o) for name, o in task.optimizers.items()}
        self.batches, self.meter = Batches(task, config, accelerator), Meter()
        self.progress: Progress | None = None  # the main process's
        self.full_config = full_config
        self.saver = Saver(self.folder / "checkpoints", config.keep_checkpoints, self.devices.sharded)
        self.outputs = Outputs(task, config, accelerator, self.devices, self.ema, self.posthoc)

    def run(self) -> None:
        """Train, alone in the folder; a full disk is told with what is left to go on from."""
        alone = folder_lock(self.folder) if self.accelerator.is_main_process else nullcontext()
        several = self.accelerator.num_processes > 1
        with alone, room_for(self.folder, self.resumable), lost_process(several, self.resumable), self.saver:
            self.loop()

    def resumable(self) -> str:
        """What the same command goes on from."""
        newest = latest_checkpoint(self.folder / "checkpoints")
        if newest is None:
            return "there is no checkpoint yet: the same command begins anew"
        return f"the checkpoint {newest} is whole: the same command goes on from it"

    def loop(self) -> None:
        """The training: one pass of the loop is one optimisation step."""
        seen = self.resume()
        self.open_folder(seen)
        stop = min(self.config.num_images, self.config.stop_at_images or self.config.num_images)
        if self.accelerator.is_main_process:
            self.progress = Progress(seen, self.config.num_images, self.accelerator.device)
        with shown(self.progress):
            for parts in self.batches.between(seen, stop):
                self.begin_step(seen)
                for number, part in enumerate(parts, start=1):
                    for name, loss, metrics in self.losses(part):
                        self.devices.backward(name, loss / len(parts), last=number == len(parts))
                        self.meter.add({name: loss, **metrics})
                        if number == len(parts):
                            self.step(name)
                before, seen = seen, seen + self.config.batch_size
                self.ema.update(seen, self.config.batch_size)
                self.posthoc.update(seen, self.config.batch_size)
                self.after_step(before, seen, last=seen >= stop)
        self.saver.wait()
        if seen >= self.config.num_images:
            self.outputs.export(seen, last=True)
        self.outputs.finish()
        self.end()

    def end(self) -> None:
        """Let go of what averages gradients, and then end the group of processes.

        A reducer of torch that outlives the group holds Python's lock while it waits for a thread of gloo,
        which may be waiting for that lock: the process would never end.
        """
        self.devices.gates.clear()
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def begin_step(self, seen: int) -> None:
        """Set what depends on the position: the networks' own randomness (dropout) and the learning rate."""
        torch.manual_seed(seed_for(self.config.seed, seen + self.accelerator.process_index))
        factor = learning_rate_factor(
            self.config.learning_rate_schedule,
            seen + self.config.batch_size,
            self.config.warmup_images,
            self.config.num_images,
        )
        for optimizer in self.task.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def losses(self, part: Any) -> Iterator[tuple[str, Tensor, Metrics]]:
        """The task's losses, each computed under autocast; backward passes and steps happen outside it."""
        steps = iter(self.task.losses(part))
        while True:
            with self.autocast():
                item = self.devices.computed(lambda: next(steps, None))
            if item is None:
                return
            yield item

    def step(self, name: str) -> None:
        """Clip the gradient and step one optimizer."""
        optimizer = self.optimizers[name]
        self.accelerator.unscale_gradients(optimizer)
        norm = self.devices.clip(name, self.config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        self.meter.add({f"{name}_gradient_norm": norm})

    def after_step(self, before: int, seen: int, last: bool) -> None:
        """Do what is due between two positions; the checkpoint comes last."""

        def due(every: int) -> bool:
            return every > 0 and seen // every > before // every

        config = self.config
        if due(config.log_every_images) or last:
            self.log(seen)
        if self.progress is not None:
            self.progress.advance(seen)
        if any(before < fraction * config.num_images <= seen for fraction in config.snapshot_fractions):
            self.outputs.snapshot(seen)
        if self.posthoc.due(before, seen):
            self.outputs.keep_averages(seen)
        if due(config.validate_every_images):
            self.log_validation(seen, self.outputs.validate(seen))
        if due(config.export_every_images):
            self.outputs.export(seen)
        if due(config.checkpoint_every_images) or last:
            self.save_checkpoint(seen)

    def log(self, seen: int) -> None:
        """Write the means since the last record, and stop the run when a loss is not finite."""
        accelerator = self.accelerator
        record = self.meter.read(lambda sums: accelerator.reduce(sums, "sum")) | self.batches.figures()
        for name in self.task.optimizers:
            if not abs(record.get(name, 0.0)) < float("inf"):
                raise FloatingPointError(
                    f"the loss of {name!r} is {record[name]} after {seen} images: lower learning_rate, or "
                    "resume from an earlier checkpoint"
                )
        if accelerator.is_main_process:
            seconds = self.lines.seconds
            speed = (seen - self.logged[0]) / max(seconds - self.logged[1], 1e-9)
            self.logged = (seen, seconds)
            rates = {name: o.param_groups[0]["lr"] for name, o in self.task.optimizers.items()}
            record |= {"learning_rate": rates, "images_per_second": round(speed, 1)}
            self.lines.write(seen, record)
            logger.info(in_words(record, seen, self.config.num_images, speed))
            self.progress.said()
        accelerator.log(flatten(record), step=seen)

    def log_validation(self, seen: int, metrics: Metrics) -> None:
        """Write what a validation has measured, a record of its own."""
        if metrics and self.accelerator.is_main_process:
            self.lines.write(seen, {"validation": metrics})
            self.accelerator.log(flatten({"validation": metrics}), step=seen)

    def save_checkpoint(self, seen: int) -> None:
        """Begin to write all that resuming needs; of whole modules the main process alone."""
        own = self.meter.state_dict()
        sums = {name: self.accelerator.reduce(value, "sum") for name, value in own.items()}
        data = self.batches.state_dict()
        if not (self.devices.sharded or self.accelerator.is_main_process):
            return
        tensors, plain = training_state(self.task, self.ema, self.accelerator)
        tensors |= self.posthoc.state_dict()
        tensors["meter"] = sums
        plain["precision"] = asdict(Way.of(self.config))
        if data is not None:
            plain["data"] = data
        self.saver.save(seen, tensors, plain)

    def resume(self) -> int:
        """Restore the newest checkpoint; the number of images seen, 0 when there is none."""
        path = latest_checkpoint(self.folder / "checkpoints")
        if path is None:
            timed = None if self.devices.sharded else self.batches
            self.compute_by(choose(self.task, self.config, self.accelerator, timed))
            return 0
        checkpoint = Checkpoint(path)
        check_fits(path, self.task, self.ema, checkpoint.parts, checkpoint.state)
        earlier = checkpoint.state.get("precision") or recorded(self.folder)
        self.compute_by(settled(self.config, earlier.get("training", earlier)))
        self.posthoc.restore(checkpoint)
        restore_training(self.task, self.ema, self.accelerator, checkpoint)
        sums = checkpoint.read("meter") if "meter" in checkpoint.parts else {}
        share = float(self.accelerator.is_main_process)  # of the sums of all processes
        sums = {name: share * value for name, value in sums.items()}
        self.meter.load_state_dict(sums, self.accelerator.device)
        self.batches.load_state_dict(checkpoint.state.get("data"))
        seen = checkpoint.state["images_seen"]
        logger.info("resuming after %d images from %s", seen, path)
        return seen

    def open_folder(self, seen: int) -> None:
        """Write the configuration, open the log at this position, and the trackers; once all have resumed."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.posthoc.tell()
            self.folder.mkdir(parents=True, exist_ok=True)
            recover(self.folder / "final")
            record_config(self.folder, self.full_config, resuming=seen > 0)
            if begin := getattr(self.task, "begin", None):
                begin(self.folder)
            self.lines = JsonLines(self.folder / "log.jsonl", seen)
            self.logged = (seen, self.lines.seconds)
        if self.accelerator.log_with:
            plain = {name: str(value) for name, value in flatten(asdict(self.full_config)).items()}
            self.accelerator.init_trackers(self.folder.name, config=plain)

    def compute_by(self, config: TrainingConfig) -> None:
        """Take over a configuration whose precision and layout are settled."""
        by_us = self.config.mixed_precision == "auto"
        self.autocast = partial(autocast, self.accelerator, config.mixed_precision if by_us else "no")
        if self.devices.sharded:  # what is gathered has the plain layout
            config = replace(config, channels_last=False)
        for module in self.task.modules.values():
            lay_out(module, Way.of(config))
            if config.compile:
                module.compile()
        self.config, self.full_config = config, with_training(self.full_config, config)
