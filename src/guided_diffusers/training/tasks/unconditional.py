"""Training of a denoiser of images, unconditional or by class, as a task of the engine.

The images are pixels, or the latents of a given autoencoder. With the hybrid objective (twice the channels of
output) the network learns the variances of its reverse steps too, from the variational bound, while the
bound sends no gradient into the prediction. A training sample at position p has randomness of (seed, p)
alone, importance-sampled timesteps excepted: they depend on the losses so far, whose history is a module of
the task and so part of every checkpoint.

With `class_dropout` the network's last class is the null class: it takes the place of so many labels, and is
what classifier-free guidance takes for the null condition.

References:
    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), algorithm 1.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather
from diffusers import DDPMPipeline
from diffusers.utils import make_image_grid
from torch import Tensor, nn

from guided_diffusers.core.randomness import generator_for, randn_for, seed_for
from guided_diffusers.likelihood.bound import estimated_bound
from guided_diffusers.likelihood.variational import hybrid_terms
from guided_diffusers.losses import add_noise, denoising_loss
from guided_diffusers.pipelines.image import ImagePipeline
from guided_diffusers.schedulers import GuidedDDPMScheduler
from guided_diffusers.training.data.images import Latents
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.engine.trainer import make_optimizer
from guided_diffusers.training.tasks.importance import ImportanceSampler
from guided_diffusers.training.tasks.kept import Classes, keep_classes

NOISE, LEVEL, VALIDATION, DROPOUT = range(1, 5)  # streams of randomness


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network learns, and at which timesteps."""

    loss: Literal["simple", "hybrid", "bound"] = option(
        "simple", "squared error; with the bound's for the variance; or the bound alone"
    )
    bound_weight: float = option(0.001, "lambda: weight of the sum over t of the bound's terms (hybrid)")
    timesteps: Literal["uniform", "importance"] = option("uniform", "importance: by the size of past losses")
    class_dropout: float = option(0.0, "share of labels replaced by the null class, the network's last")

    def __post_init__(self) -> None:
        """Check ranges; ValueError names the field."""
        if not 0 <= self.class_dropout <= 1:
            raise ValueError(f"class_dropout must lie in [0, 1], got {self.class_dropout}")
        if not self.bound_weight > 0:
            raise ValueError(f"bound_weight must be positive, got {self.bound_weight}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is drawn and measured with the averaged weights."""

    images: int = option(64, "images to draw, in rows of eight; 0: none")
    num_inference_steps: int = option(50, "steps of the scheduler")
    split: str = option("test", "held-out split of the data, for the bound")
    bound_images: int = option(0, "of it, so many images' bits/dim are estimated (pixels only); 0: none")
    bound_draws: int = option(10, "forwards an image for that")


class UnconditionalTask:
    """Trains `unet`.

    Args:
        unet: a UNet2DModel; twice its input's channels with a learned variance.
        scheduler: its noise levels, prediction type and variance type.
        images: pixels, or latents.
        objective: what to learn.
        validation: what to draw and measure.
        training: the engine's configuration.
        labels: the class of each row of `images`, (rows,) int64; None for an unconditional model.
        vae: the autoencoder of the latents; None for pixels.
        held_out: pixels whose bits/dim are estimated, with their labels where there are classes.
        classes: those of the run, where it has any; they are written into its folder.

    Raises:
        ValueError: a network whose channels do not suit the objective and variance type, or one without
            classes for labels.
    """

    averaged = ("unet",)

    def __init__(
        self,
        unet: nn.Module,
        scheduler: GuidedDDPMScheduler,
        images: Latents,
        objective: ObjectiveConfig,
        validation: ValidationConfig,
        training: TrainingConfig,
        labels: Tensor | None = None,
        vae: nn.Module | None = None,
        held_out: tuple[Tensor, Tensor | None] | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.classes = classes
        self.unet, self.scheduler, self.images, self.labels, self.vae = unet, scheduler, images, labels, vae
        self.objective, self.validation, self.held_out = objective, validation, held_out
        self.seed, self.num_samples = training.seed, len(images)
        self.allows_bfloat16 = objective.loss == "simple"  # a bound of likelihoods is of exact ones
        self.modules: dict[str, nn.Module] = {"unet": unet}
        self.sampler = None
        if objective.timesteps == "importance":
            self.sampler = self.modules["timesteps"] = ImportanceSampler(len(scheduler.timesteps))
        self.optimizers = {"denoiser": make_optimizer(training, unet.parameters())}
        size = unet.config.sample_size
        self.shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        self._check()

    def _check(self) -> None:
        config, variance = self.unet.config, self.scheduler.config.variance_type
        learned = variance in ("learned", "learned_range")
        expected = config.in_channels * (2 if learned else 1)
        if config.out_channels != expected:
            raise ValueError(
                f"unet.out_channels is {config.out_channels}; variance_type {variance!r} with "
                f"{config.in_channels} in_channels needs {expected}"
            )
        if learned != (self.objective.loss != "simple"):
            raise ValueError(
                f"objective.loss is {self.objective.loss!r} with variance_type {variance!r}: use 'simple' "
                "with a fixed variance, 'hybrid' or 'bound' with a learned one"
            )
        if (self.labels is None) != (self.unet.class_embedding is None):
            raise ValueError(
                "classes need both label_column and unet.num_class_embeds (or class_embed_type); one of "
                "them is given without the other"
            )
        self._check_classes()

    def _check_classes(self) -> None:
        null = self.objective.class_dropout > 0
        if self.labels is None:
            if null:
                raise ValueError("class_dropout needs classes: name their column in label_column")
            return
        held_out = None if self.held_out is None else self.held_out[1]
        classes = 1 + max(int(labels.max()) for labels in (self.labels, held_out) if labels is not None)
        known = self.unet.config.num_class_embeds
        if null and (known is None or known <= classes):
            raise ValueError(
                f"unet.num_class_embeds is {known}; class_dropout needs {classes + 1}: {classes} classes and "
                "the null class"
            )
        if known is not None and known < classes:
            raise ValueError(f"unet.num_class_embeds is {known}, but there are labels up to {classes - 1}")

    def begin(self, folder: Path) -> None:
        """Write the run's classes."""
        if self.classes is not None:
            keep_classes(folder, self.classes)

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images, eps, uniform numbers that become timesteps, labels."""
        draws = 1 if self.vae is None else 2  # a draw from the latents' posterior
        noise = randn_for(seed_for(self.seed, NOISE), positions, (draws, *self.shape))
        batch = {
            "images": self.images.sample(indices, noise[:, -1]),
            "noise": noise[:, 0],
            "uniform": uniform_for(seed_for(self.seed, LEVEL), positions),
        }
        if self.labels is not None:
            batch["condition"] = {"class_labels": self.kept(self.labels[indices], positions)}
        return batch

    def kept(self, labels: Tensor, positions: list[int]) -> Tensor:
        """Labels, some of them replaced by the null class."""
        if self.objective.class_dropout == 0:
            return labels
        dropped = uniform_for(seed_for(self.seed, DROPOUT), positions) < self.objective.class_dropout
        return torch.where(dropped, self.unet.config.num_class_embeds - 1, labels)

    def timesteps(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps from uniform numbers, and the weights of their losses; (batch,), on the CPU."""
        if self.sampler is not None:
            return self.sampler.draw(uniform)
        count = len(self.scheduler.timesteps)
        return (uniform.cpu() * count).long().clamp(max=count - 1), torch.ones(len(uniform))

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """One loss: the mean over samples, each weighted against the preference of its timestep."""
        x0, noise = batch["images"], batch["noise"]
        timestep, weight = self.timesteps(batch["uniform"])
        sample = add_noise(x0, noise, self.scheduler.noise_level(timestep))
        here = timestep.to(x0.device)
        output = self.unet(sample, here, return_dict=False, **batch.get("condition", {}))[0].float()
        each, metrics = self.each(output, x0, noise, sample, timestep)
        if self.sampler is not None:
            self.sampler.update(gather(here), gather(each.detach()))
        bins = here * 4 // len(self.scheduler.timesteps)
        binned = {f"{name}_by_noise": ByBin(values.detach(), bins) for name, values in metrics.items()}
        yield "denoiser", (weight.to(each) * each).mean(), binned

    def each(
        self, output: Tensor, x0: Tensor, noise: Tensor, sample: Tensor, timestep: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of each sample, (batch,), and its parts by name."""
        kind = self.objective.loss
        if kind == "simple":
            level = self.scheduler.noise_level(timestep)
            simple = denoising_loss(output, x0, noise, level, self.scheduler.config.prediction_type)
            return simple, {"simple": simple}
        arguments = (self.scheduler, output, x0, noise, sample, timestep)
        simple, bound = hybrid_terms(*arguments, stop_gradient=kind == "hybrid")
        each = bound if kind == "bound" else simple + self.objective.bound_weight * bound
        return each, {"simple": simple, "bound": bound}

    def pipeline(self, modules: Mapping[str, nn.Module]) -> DDPMPipeline | ImagePipeline:
        """A DDPMPipeline of diffusers for unconditional pixels, else an ImagePipeline."""
        scheduler = GuidedDDPMScheduler.from_config(self.scheduler.config)
        if self.labels is None and self.vae is None:
            return DDPMPipeline(modules["unet"], scheduler)
        return ImagePipeline(unet=modules["unet"], scheduler=scheduler, vae=self.vae)

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Draw images, from the same noise every time, into <images seen>.png; estimate held-out bits/dim."""
        options, unet = self.validation, modules["unet"]
        if options.images > 0:
            pipeline = self.pipeline(modules)
            pipeline.set_progress_bar_config(disable=True)
            if self.vae is not None:
                self.vae.to(unet.device)
            seed = seed_for(self.seed, VALIDATION)
            generators = [generator_for(seed, number) for number in range(options.images)]
            classes = {} if self.labels is None else {"class_labels": self.drawn_classes()}
            drawn = pipeline(
                batch_size=options.images,
                generator=generators,
                num_inference_steps=options.num_inference_steps,
                **classes,
            ).images
            columns = next(count for count in range(min(8, len(drawn)), 0, -1) if len(drawn) % count == 0)
            picture = make_image_grid(drawn, rows=len(drawn) // columns, cols=columns)
            picture.save(folder / f"{images_seen:012d}.png")
        if self.held_out is None:
            return {}
        pixels, labels = (None if part is None else part.to(unet.device) for part in self.held_out)
        condition = None if labels is None else {"class_labels": labels}
        bounds = estimated_bound(
            unet, {"bits_per_dim": self.scheduler}, pixels, options.bound_draws, condition=condition
        )
        return {name: bound.total.mean() for name, bound in bounds.items()}

    def drawn_classes(self) -> list[int]:
        """The classes of the validation pictures, in turn."""
        count = int(self.labels.max()) + 1
        return [number % count for number in range(self.validation.images)]

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the pipeline."""
        self.pipeline(modules).save_pretrained(folder)
