"""The precision, memory layout and attention that train fastest here: measured; nothing else tells.

Of `training.mixed_precision`, `training.channels_last` and, on a CPU, `training.attention`, whichever is
`auto` is tried both ways before the first step: the task's own losses and their backward passes, on samples
of its own, after a warm-up. Nothing is left of it: weights and their layout, buffers, gradients and random
numbers are what they were.

The answer belongs to the run: it stands in its config.json and in every checkpoint, and is not measured again
when the run goes on. Runs of fewer than SHORTEST images are not measured: they train plainly, in float32.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

from guided_diffusers.training.engine.batches import Batches
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.task import Task
from guided_diffusers.training.engine.trained import parameters_of

logger = logging.getLogger(__name__)

SHORTEST = 10_000  # images: a shorter run would gain little
SECONDS = 4.0  # of measuring, after which no further round begins
ROUNDS = 3
GAIN = 0.95  # another way is taken if its time is less than this share of the plain one's
TOLERANCE = 0.02  # bfloat16 is not taken where it moves the loss by a larger share


@dataclass(frozen=True)
class Way:
    """One way to compute a step, as in the configuration."""

    mixed_precision: str
    channels_last: bool
    attention: str = "fused"

    @classmethod
    def of(cls, config: TrainingConfig) -> Way:
        """What a configuration says."""
        return cls(config.mixed_precision, config.channels_last, config.attention)

    def __str__(self) -> str:
        """In words."""
        precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.mixed_precision]
        further = {", channels last": self.channels_last, ", plain attention": self.attention == "plain"}
        return precision + "".join(text for text, is_so in further.items() if is_so)


def settled(config: TrainingConfig, earlier: Mapping[str, Any]) -> TrainingConfig:
    """The configuration with what is `auto` as a run's record has it; plain where there is no record."""
    found = {name: earlier.get(name, plain) for name, plain in asdict(Way("no", False)).items()}
    return replace(config, **{name: v for name, v in found.items() if getattr(config, name) == "auto"})


def choose(
    task: Task, config: TrainingConfig, accelerator: Accelerator, batches: Batches | None
) -> TrainingConfig:
    """The configuration with what is `auto` replaced by what is fastest, the same on every process.

    Without batches nothing is timed: of networks that are split over processes bfloat16 is taken where it may
    be, unless on a CPU, and the plain layout.
    """
    if "auto" not in (config.mixed_precision, config.channels_last, config.attention):
        return config
    ways = ways_to_try(task, config, accelerator)
    if batches is None:
        plain = [way for way in ways if way.channels_last == ways[0].channels_last]
        way = plain[0] if accelerator.device.type == "cpu" else plain[-1]
        return _said(config, way, "networks that are split over processes are not timed", accelerator)
    if len(ways) == 1 and "auto" not in (config.mixed_precision, config.channels_last):
        return replace(config, **asdict(ways[0]))
    if config.num_images < SHORTEST:
        return _said(config, ways[0], f"runs of fewer than {SHORTEST:,} images are not timed", accelerator)
    with _as_it_was(task):
        measured = _measure(task, config, accelerator, batches, ways) if len(ways) > 1 else {}
    best = min(measured, key=lambda way: measured[way], default=ways[0])
    if ways[0] in measured and measured[best] > GAIN * measured[ways[0]]:
        best = ways[0]
    timed = "; ".join(f"{way} {1 / seconds:.3g}" for way, seconds in measured.items())
    reason = f"the fastest here, of so many images a second: {timed}" if timed else "no other way runs here"
    return _said(config, best, reason, accelerator)


def _said(config: TrainingConfig, way: Way, reason: str, accelerator: Accelerator) -> TrainingConfig:
    if accelerator.is_main_process:
        layout = str(way.channels_last).lower()
        keys = f"training.mixed_precision is {way.mixed_precision}, training.channels_last {layout}"
        keys += ", training.attention plain" if way.attention == "plain" else ""
        logger.info("computing in %s (%s): %s", way, keys, reason)
    return replace(config, **asdict(way))


def ways_to_try(task: Task, config: TrainingConfig, accelerator: Accelerator) -> list[Way]:
    """The plain way first. bfloat16 only where the task allows it and the device computes in it."""
    precisions, layouts = [config.mixed_precision], [config.channels_last]
    if config.mixed_precision == "auto":
        given = accelerator.mixed_precision  # of an accelerator that a script has made
        precisions = [given]
        if given == "no" and getattr(task, "allows_bfloat16", False) and _has_bfloat16(accelerator.device):
            precisions.append("bf16")
    if config.channels_last == "auto":
        maps = any(p.dim() == 4 for module in task.modules.values() for p in module.parameters())
        layouts = [False, True] if maps else [False]
    attentions = [config.attention]
    if config.attention == "auto":
        slow = accelerator.device.type == "cpu" and any(fused_attention(m) for m in task.modules.values())
        attentions = ["fused", "plain"] if slow else ["fused"]
    return [Way(*one) for one in itertools.product(precisions, layouts, attentions)]


def fused_attention(module: nn.Module) -> list[Any]:
    """The layers of a network of diffusers whose attention torch computes in one operation."""
    return [m for m in module.modules() if isinstance(getattr(m, "processor", None), AttnProcessor2_0)]


def lay_out(module: nn.Module, way: Way) -> None:
    """Give a network a way's layout and attention; plain attention is products and a softmax."""
    if way.channels_last:
        module.to(memory_format=torch.channels_last)
    if way.attention == "plain":
        for layer in fused_attention(module):
            layer.set_processor(AttnProcessor())


def autocast(accelerator: Accelerator, mixed_precision: str) -> AbstractContextManager:
    """The context of the losses. The accelerator's own precision counts, where it was made with one."""
    if mixed_precision == "bf16" and accelerator.mixed_precision == "no":
        return torch.autocast(accelerator.device.type, torch.bfloat16)
    return accelerator.autocast()


def _measure(
    task: Task, config: TrainingConfig, accelerator: Accelerator, batches: Batches, ways: list[Way]
) -> dict[Way, float]:
    """Seconds an image for each way that runs and computes the same loss, on samples of the last step.

    There every loss of the task counts. A GPU needs a whole part to be busy; a CPU has as many samples as it
    computes in a quarter of a second.
    """
    last, count = (config.num_images - 1) // config.batch_size * config.batch_size, batches.part_size
    if accelerator.device.type == "cpu":
        few = min(count, 2)
        batch = batches.samples(last, few)
        seconds = min(_trial(task, accelerator, ways[0], batch)[0] for _ in range(2))  # the first is slow
        count = max(few, min(count, int(few * SECONDS / 16 / seconds)))
    batch = batches.samples(last, count)
    warm = {way: _trial(task, accelerator, way, batch) for way in ways}
    sound = [way for way in ways if math.isfinite(warm[way][1]) and _agrees(warm, way)]
    spent, times = sum(warm[way][0] for way in sound), {way: warm[way][0] for way in sound}
    for number in range(ROUNDS if len(sound) > 1 else 0):
        if spent > SECONDS:
            break
        again = {way: _trial(task, accelerator, way, batch)[0] for way in sound}
        times = {way: again[way] if number == 0 else min(times[way], again[way]) for way in sound}
        spent += sum(again.values())
    return {way: seconds / count for way, seconds in times.items()}


def _agrees(warm: Mapping[Way, tuple[float, float]], way: Way) -> bool:
    """Whether a way's loss is that of float32 in the same layout (in another, dropout drops others)."""
    _, loss = warm[way]
    _, exact = warm.get(replace(way, mixed_precision="no"), (0.0, loss))
    return not math.isfinite(exact) or abs(loss - exact) <= TOLERANCE * abs(exact)


def _trial(task: Task, accelerator: Accelerator, way: Way, batch: Any) -> tuple[float, float]:
    """Seconds of the forward and backward passes, of the slowest process, and the losses' sum.

    Both are infinite where the passes fail, for want of memory say.
    """
    try:
        with _laid_out(task, way), torch.random.fork_rng():
            torch.manual_seed(0)
            _wait(accelerator.device)
            start, losses, total = time.perf_counter(), iter(task.losses(batch)), 0.0
            while True:
                with autocast(accelerator, way.mixed_precision):
                    item = next(losses, None)
                if item is None:
                    break
                name, loss, _ = item
                loss.backward(inputs=parameters_of(task.optimizers[name]))
                total += loss.item()
            _wait(accelerator.device)
            seconds = time.perf_counter() - start
    except RuntimeError as error:
        logger.warning("%s does not run here: %s", way, str(error).split("\n")[0])
        seconds, total = math.inf, math.inf
    for module in task.modules.values():
        module.zero_grad(set_to_none=True)
    both = gather(torch.tensor([[seconds, total]], device=accelerator.device, dtype=torch.float32))
    return both[:, 0].max().item(), both[:, 1].mean().item()


@contextmanager
def _laid_out(task: Task, way: Way) -> Iterator[None]:
    """Weights in a layout, and an attention; afterwards both are what they were."""
    own = [(p, p.data) for module in task.modules.values() for p in module.parameters()]
    layers = [(m, m.processor) for module in task.modules.values() for m in fused_attention(module)]
    try:
        for module in task.modules.values():
            lay_out(module, way)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
        for layer, processor in layers:
            layer.set_processor(processor)


@contextmanager
def _as_it_was(task: Task) -> Iterator[None]:
    """Buffers keep their values and layout: running statistics, the history of losses."""
    own = [(buffer, buffer.data, buffer.clone()) for m in task.modules.values() for buffer in m.buffers()]
    try:
        yield
    finally:
        for buffer, data, values in own:
            buffer.data = data.copy_(values)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type in ("cpu", "xpu")
