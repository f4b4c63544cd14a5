"""Time of a whole training step with caches over the bare forward-backward-optimizer step.

    python training/data/fashion_mnist.py --output data/fashion
    python benchmarks/speed/training_step.py --data data/fashion --size 4M --output step-4M.json

Our step is the engine's: the data's order, cached latents and embeddings, noise and levels by position, the
weighted loss, clipping, the optimizer, the average of the weights, the log. The bare step is a copy of the
same denoiser on one prepared batch: forward, mean squared error, backward, the same optimizer. Blocks of both
alternate within one run of the engine, as A B, B A, A B, ...; the ratio's upper end should be at most 1.10.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models import SIZES, random_components
from pairs import PairedTimes, line
from torch import nn

from guided_diffusers import VariationalAutoencoder
from guided_diffusers.evaluation.runs import machine, parameters_millions, write_json
from guided_diffusers.training.data.cache import cached_embeddings
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import Images, image_arguments
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import Trainer, make_accelerator, make_optimizer
from guided_diffusers.training.tasks.conditioning import Captions, DrawingConfig, TextDenoisingConfig
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.encoded_text import FrozenText
from guided_diffusers.training.tasks.objective import Objective, ObjectiveConfig

BOUND = 1.10


class Interleaved(Trainer):
    """The engine's trainer, with blocks of another step between blocks of its own; both are timed."""

    def __init__(self, *positional: Any, other: Callable[[], None], block_steps: int, warmup: int) -> None:
        super().__init__(*positional)
        self.other, self.block_steps, self.warmup = other, block_steps, warmup
        self.own_s: list[float] = []
        self.other_s: list[float] = []
        self.steps_done = 0
        self.block_start = time.perf_counter()

    def after_step(self, *positional: Any, **named: Any) -> None:
        """Ends the step as always; at the end of an odd block runs two blocks of the other step."""
        super().after_step(*positional, **named)
        self.steps_done += 1
        if self.steps_done <= self.warmup:
            self.other()
            self.block_start = time.perf_counter()
        elif (self.steps_done - self.warmup) % self.block_steps == 0:
            self.own_s.append((time.perf_counter() - self.block_start) / self.block_steps)
            if len(self.own_s) % 2 == 1:
                self.other_s += [self.time_other(), self.time_other()]
            self.block_start = time.perf_counter()

    def time_other(self) -> float:
        """Seconds of one of the other steps, over a block."""
        start = time.perf_counter()
        for _ in range(self.block_steps):
            self.other()
        return (time.perf_counter() - start) / self.block_steps


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of training/data/fashion_mnist.py")
    parser.add_argument("--size", choices=list(SIZES), default="4M")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=20, help="an even number of pairs of blocks")
    parser.add_argument("--block-steps", type=int, default=5, help="steps a block")
    parser.add_argument("--warmup-steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the training data that are used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    arguments = parser.parse_args()
    if arguments.pairs % 2:
        parser.error("--pairs must be even: blocks alternate as A B, B A")
    torch.set_num_threads(arguments.threads)
    results = measure(arguments)
    print(line("training step / bare step", results["over_bare_step"]))
    write_json(arguments.output, results)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The ratio, with what it was taken on."""
    with tempfile.TemporaryDirectory() as temporary:
        steps = arguments.warmup_steps + arguments.pairs * arguments.block_steps
        config = TrainingConfig(
            output_dir=str(Path(temporary) / "run"),
            num_images=steps * arguments.batch_size,
            batch_size=arguments.batch_size,
            log_every_images=25 * arguments.batch_size,
            checkpoint_every_images=0,
            validate_every_images=0,
            snapshot_fractions=(),
        )
        task = make_task(arguments, config, Path(temporary))
        trainer = Interleaved(
            task,
            config,
            config,
            make_accelerator(config),
            other=bare_step(task, config),
            block_steps=arguments.block_steps,
            warmup=arguments.warmup_steps,
        )
        trainer.run()
    return {
        "model": arguments.size,
        "unet_parameters_millions": parameters_millions(task.modules["unet"]),
        "batch_size": arguments.batch_size,
        "block_steps": arguments.block_steps,
        "machine": machine(),
        "over_bare_step": PairedTimes(first_s=trainer.own_s, second_s=trainer.other_s).report(BOUND),
    }


def make_task(arguments: argparse.Namespace, config: TrainingConfig, folder: Path) -> DenoisingTask:
    """Text-to-image training of a random denoiser, latents and embeddings from caches in a folder."""
    size = SIZES[arguments.size]
    components = random_components(size)
    components["vae"] = VariationalAutoencoder.from_config(components["vae"].config).eval()
    data = ImageTextDataset(
        DataConfig(
            path=str(arguments.data),
            split=f"train[:{arguments.rows}]",
            channels=size.image_channels,
            resolution=size.latent_size * 2 ** (len(size.vae_widths) - 1),
            cache_dir=str(folder),
        )
    )
    captions = ["", *data.all_captions()]
    text_encoder = components["text_encoder"].requires_grad_(False)
    embeddings = cached_embeddings(text_encoder, components["tokenizer"], captions, folder)
    denoising = TextDenoisingConfig()
    condition = Captions(
        components={name: components[name] for name in ("vae", "text_encoder", "tokenizer")},
        captions=lambda indices, positions: data.captions(indices, positions, config.seed),
        text=FrozenText(captions, embeddings),
        dropout=denoising.caption_dropout,
        drawing=DrawingConfig(),
        joint=False,
    )
    images = Images(**image_arguments(data, components["vae"].requires_grad_(False)))
    objective = Objective(ObjectiveConfig(), denoising, components["scheduler"])
    return DenoisingTask(components["unet"], images, condition, objective, config)


def bare_step(task: DenoisingTask, config: TrainingConfig) -> Callable[[], None]:
    """Forward, mean squared error, backward, optimizer: a copy of the denoiser on one prepared batch."""
    denoiser: nn.Module = copy.deepcopy(task.unet).train()
    optimizer = make_optimizer(config, denoiser.parameters())
    positions = list(range(config.batch_size))
    batch = task.batch(positions, positions)
    timestep = batch["level"].timestep

    def step() -> None:
        output = denoiser(batch["images"], timestep, batch["condition"]["text"], return_dict=False)[0]
        F.mse_loss(output, batch["noise"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
