"""Training of a denoiser of images as a task of the engine: by captions, by class, or of neither.

The images are pixels, or the latents of a given autoencoder. What the network is told is its `Conditioning`,
what it learns its `Objective`. A training sample at position p has randomness of (seed, p) alone, in streams
of their own: eps and the latent from its posterior, the noise level, and whether its condition is dropped.
Importance-sampled timesteps depend on the losses so far besides, whose history is a module of the task and so
part of every checkpoint.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from torch import Tensor, nn

from guided_diffusers.core.networks import Network
from guided_diffusers.core.noise import broadcast
from guided_diffusers.core.randomness import Stream, generator_for, randn_for, seed_for
from guided_diffusers.losses import add_noise
from guided_diffusers.training.data.images import Images
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.engine.parallel import by_shares
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.engine.trainer import make_optimizer
from guided_diffusers.training.tasks.conditioning import Conditioning
from guided_diffusers.training.tasks.measures import Measures
from guided_diffusers.training.tasks.network import component_of, keep_all_labels
from guided_diffusers.training.tasks.objective import Objective, learned_variance


class DenoisingTask:
    """Trains a network, and with it what of its condition is trained.

    Args:
        unet: a network of `tasks.network`; twice its input's channels with a learned variance.
        images: pixels, or latents.
        condition: what the network is told, and the pipeline that comes of it.
        objective: what the network learns.
        training: the engine's configuration.
        measures: what is measured of drawn images at validation; None for nothing.

    Raises:
        ValueError: a network whose channels do not suit the scheduler's variance, or that is not for the
            condition.
    """

    validates_together = True

    def __init__(
        self,
        unet: nn.Module,
        images: Images,
        condition: Conditioning,
        objective: Objective,
        training: TrainingConfig,
        measures: Measures | None = None,
    ) -> None:
        self.measures = measures
        self.unet, self.images, self.condition, self.objective = unet, images, condition, objective
        self.scheduler, self.seed = objective.scheduler, training.seed
        self.num_samples, self.source = images.num_samples, images.source
        self.order = getattr(images, "order", None)
        self.allows_bfloat16 = objective.objective.loss == "simple"  # a bound of likelihoods is of exact ones
        self._check_channels()
        condition.check(unet)
        keep_all_labels(unet)
        self.network, self.name = Network(condition.network(unet)), component_of(unet)
        self.modules: dict[str, nn.Module] = {self.name: unet, **condition.trained}
        self.averaged = tuple(self.modules)
        if objective.uncertainty is not None:
            self.modules["uncertainty"] = objective.uncertainty
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizers = {"denoiser": make_optimizer(training, parameters)}
        if objective.sampler is not None:
            self.modules["timesteps"] = objective.sampler

    def _check_channels(self) -> None:
        config, variance = self.unet.config, self.scheduler.config.get("variance_type")
        seen = config.get("in_channels")
        if seen is None:
            return
        noised, outputs = seen - self.condition.further_channels, config.get("out_channels") or seen
        expected = noised * (2 if learned_variance(self.scheduler) else 1)
        if outputs != expected:
            raise ValueError(
                f"unet.out_channels is {outputs}; variance_type {variance!r} with "
                f"{noised} in_channels needs {expected}"
            )

    def begin(self, folder: Path) -> None:
        """Write the run's tokenizer, or its classes."""
        self.condition.begin(folder)

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images, eps, condition, and noise levels or the uniform numbers that become timesteps."""
        draws = (1 + self.images.latent, *self.images.shape_of(indices))
        noise = randn_for(seed_for(self.seed, Stream.NOISE), positions, draws)
        if self.condition.posterior_first:
            noise = noise.flip(1)
        uniform = uniform_for(seed_for(self.seed, Stream.LEVEL), positions)
        return {
            "images": self.images.at(indices, positions, noise[:, -1]),
            "noise": noise[:, 0],
            "condition": self.condition.rows(indices, positions, self.seed),
            **({"uniform": uniform} if self.objective.sampler else self.objective.draw(uniform)),
        }

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """One loss: the mean over samples, each weighted against the preference of its timestep."""
        x0, noise, sampler = self.images.seen(batch["images"]), batch["noise"], self.objective.sampler
        drawn = batch if sampler is None else self.objective.draw(batch["uniform"])
        level, bins = drawn["level"], drawn["bins"]
        sample = add_noise(x0, noise, level)
        timestep = level.timestep.to(x0.device)
        told = self.condition.inputs(batch["condition"])
        scaled = broadcast(level.input_scale, sample) * sample
        output = self.network(scaled, timestep, told)
        output = output if isinstance(output, Tensor) else output[0]
        parts = self.objective.losses(output.float(), x0, noise, sample, level)
        each = parts["loss"]
        by_noise = {f"{name}_by_noise": ByBin(values.detach(), bins) for name, values in parts.items()}
        if sampler is not None:
            sampler.update(gather(timestep), gather(each.detach()))
            each = drawn["weight"].to(each) * each
        yield "denoiser", each.mean(), by_noise

    def pipeline(self, modules: Mapping[str, nn.Module]) -> DiffusionPipeline:
        """What draws with the networks `modules`."""
        networks = {name: modules[name] for name in self.averaged}
        return self.condition.pipeline(networks, type(self.scheduler).from_config(self.scheduler.config))

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Draw images, from the same noise every time, into <images seen>.png; measure what there is.

        Of several prompts each has a picture of its own besides, <images seen>-<number>-<prompt>.png. Every
        process draws a share; the first one measures and writes.
        """
        arguments, count, columns = self.condition.pictures()
        images, measured = [], None
        if count > 0 or self.measures is not None:
            pipeline = self.pipeline(modules).to(modules[self.name].device)
            pipeline.set_progress_bar_config(disable=True)
            seed = seed_for(self.seed, self.condition.drawing_stream)

            def draw(numbers: list[int]) -> list[Any]:
                generators = [generator_for(seed, number) for number in numbers]
                return pipeline(**of_pictures(arguments, numbers, count), generator=generators).images

            images = by_shares(count, draw)
            measured = None if self.measures is None else self.measures.draw(pipeline, arguments)
        if not PartialState().is_main_process:
            return {}
        figures = dict(self.condition.measure(modules[self.name], self.scheduler))
        if images:
            name, prompts = f"{images_seen:012d}", arguments.get("prompt", ())
            make_image_grid(images, rows=count // columns, cols=columns).save(folder / f"{name}.png")
            each = len(prompts) > 1 and "num_images_per_prompt" in arguments
            for number, prompt in enumerate(prompts if each else ()):
                row = images[number * columns : (number + 1) * columns]
                words = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:40]
                make_image_grid(row, 1, columns).save(folder / f"{name}-{number:02d}-{words}.png")
        if self.measures is not None and measured is not None:
            figures |= self.measures.figures(measured)
        return figures

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the pipeline; a text encoder is float32, for transformers keeps a file's dtype."""
        pipeline = self.pipeline(modules)
        if self.condition.export_dtype == "float16":
            half = {
                name: copy.deepcopy(part) for name in (self.name, "vae") if (part := getattr(pipeline, name))
            }
            pipeline.register_modules(**{name: part.half() for name, part in half.items()})
        pipeline.save_pretrained(folder)


def of_pictures(arguments: Mapping[str, Any], numbers: Sequence[int], count: int) -> dict[str, Any]:
    """A pipeline's arguments for some of the pictures that they are for.

    Args:
        arguments: for `count` pictures, `num_images_per_prompt` for each prompt.
        numbers: those to draw, from 0 on.
        count: of all.
    """
    if len(numbers) == count:
        return dict(arguments)
    each, chosen = arguments.get("num_images_per_prompt", 1), dict(arguments)
    places = [number // each for number in numbers]
    for name in chosen.keys() & {"prompt", "negative_prompt", "class_labels", "image"}:
        value = chosen[name]
        chosen[name] = value[places] if isinstance(value, Tensor) else [value[place] for place in places]
    counts = {"num_images_per_prompt": 1, "batch_size": len(numbers)}
    return chosen | {name: value for name, value in counts.items() if name in arguments}
