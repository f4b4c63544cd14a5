"""Text-to-image training as a task of the engine: a latent denoiser, and with it the text encoder or not.

A training sample at position p has randomness of (seed, p) alone, in streams of their own: the latent from
its posterior and eps, the noise level, and whether its caption is dropped. A dropped caption is the empty
prompt, which is what classifier-free guidance takes for the null condition (Ho and Salimans,
arXiv:2207.12598, algorithm 1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers.utils import make_image_grid
from torch import Tensor, nn
from torch.optim import Optimizer

from guided_diffusers.core.condition import encode_text, tokenize
from guided_diffusers.core.randomness import generator_for, randn_for, seed_for
from guided_diffusers.losses import (
    LEVEL_DISTRIBUTIONS,
    add_noise,
    denoising_loss,
    min_snr_weight,
    process_of,
    quartile,
    uniform_weight,
)
from guided_diffusers.pipelines import TextToImagePipeline
from guided_diffusers.schedulers.adapt import prediction_type_of
from guided_diffusers.training.data.images import Latents
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.tasks.kept import keep_tokenizer

NOISE, LEVEL, DROPOUT, VALIDATION = range(1, 5)  # streams of randomness


class Text(Protocol):
    """Captions as the denoiser's condition."""

    def rows(self, captions: Sequence[str]) -> Tensor:
        """What the data thread looks up for some captions, (batch, ...)."""

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The denoiser's `encoder_hidden_states`, (batch, length, width)."""


class JointText:
    """Token ids, encoded at every step with gradients; equal captions of a batch are encoded once.

    Args:
        tokenizer: a tokenizer of transformers.
        captions: all that `rows` will be asked for.
        masked: rows have the mask of their tokens too, for a text encoder that is not to see padding.
    """

    def __init__(self, tokenizer: Any, captions: Sequence[str], masked: bool = False) -> None:
        self._row = {caption: row for row, caption in enumerate(captions)}
        ids, mask = tokenize(tokenizer, captions)
        self._tokens = torch.stack([ids, mask], dim=1) if masked else ids

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Token ids, (batch, length); with their mask, (batch, 2, length)."""
        return self._tokens[[self._row[caption] for caption in captions]]

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The text encoder's last hidden states, (batch, length, width)."""
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        ids, mask = (unique, None) if unique.ndim == 2 else unique.unbind(1)
        return encode_text(text_encoder, ids, mask)[inverse]


class FrozenText:
    """Embeddings computed once.

    Args:
        captions: all that `rows` will be asked for.
        embeddings: (captions, length, width), in memory or memory-mapped.
    """

    def __init__(self, captions: Sequence[str], embeddings: Tensor) -> None:
        self._row = {caption: row for row, caption in enumerate(captions)}
        self._embeddings = embeddings

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Embeddings, (batch, length, width), float32."""
        return self._embeddings[[self._row[caption] for caption in captions]].float()

    def embed(self, rows: Tensor, text_encoder: nn.Module) -> Tensor:
        """The rows themselves."""
        return rows


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """What the denoiser learns: noise levels, weights, dropped captions."""

    levels: Literal["uniform", "log_normal", "cosine"] = option("uniform", "distribution of the noise level")
    levels_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "log_normal: mean, std"})
    weighting: Literal["uniform", "min_snr"] = option("min_snr", "weight of the squared error")
    min_snr_gamma: float = option(5.0, "SNR above which an error of x_0 counts no more")
    caption_dropout: float = option(0.1, "share of captions replaced by the empty prompt")

    def __post_init__(self) -> None:
        """Check ranges; ValueError names the field."""
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], got {self.caption_dropout}")
        if not self.min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma must be positive, got {self.min_snr_gamma}")


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """What is drawn for validation, and how the result is written."""

    prompts: tuple[str, ...] = option((), "prompts to draw: a row of the picture each")
    images_per_prompt: int = option(8, "columns of the picture")
    num_inference_steps: int = option(25, "steps of the scheduler")
    guidance_scale: float = option(2.0, "gamma; it is also saved as the checkpoint's default guidance")
    export_dtype: Literal["float32", "float16"] = option("float32", "of unet and vae in final/")


class TextToImageTask:
    """Trains `unet`, and the text encoder where it is among `trained`.

    Args:
        components: vae, text_encoder, tokenizer, unet and scheduler, as TextToImagePipeline takes them.
        trained: names of the trained ones: "unet", "text_encoder".
        optimizer: over their parameters.
        latents: of the data set's images.
        captions: (indices, positions) -> one caption a sample.
        text: the captions' embeddings.
        config: what to learn.
        drawing: what to draw.
        training: the engine's configuration.
    """

    allows_bfloat16 = True

    def __init__(
        self,
        components: Mapping[str, Any],
        trained: Sequence[str],
        optimizer: Optimizer,
        latents: Latents,
        captions: Callable[[list[int], list[int]], list[str]],
        text: Text,
        config: DenoisingConfig,
        drawing: DrawingConfig,
        training: TrainingConfig,
    ) -> None:
        self.components, self.latents, self.captions, self.text = dict(components), latents, captions, text
        self.config, self.drawing, self.seed = config, drawing, training.seed
        self.modules: dict[str, nn.Module] = {name: components[name] for name in trained}
        self.averaged = tuple(trained)
        self.optimizers = {"denoiser": optimizer}
        self.num_samples = len(latents)
        self.prediction_type = prediction_type_of(components["scheduler"])
        process = process_of(components["scheduler"])
        self.levels = LEVEL_DISTRIBUTIONS[config.levels](process, **config.levels_arguments)
        weightings = {"uniform": uniform_weight, "min_snr": min_snr_weight(config.min_snr_gamma)}
        self.weighting = weightings[config.weighting]
        size, channels = components["unet"].config.sample_size, components["unet"].config.in_channels
        self.shape = (channels, *((size, size) if isinstance(size, int) else size))

    def begin(self, folder: Path) -> None:
        """Write the run's tokenizer."""
        keep_tokenizer(folder, self.components["tokenizer"])

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Latents, eps, noise levels and captions; levels stay on the CPU in float64."""
        posterior_noise, noise = randn_for(seed_for(self.seed, NOISE), positions, (2, *self.shape)).unbind(1)
        dropped = uniform_for(seed_for(self.seed, DROPOUT), positions) < self.config.caption_dropout
        captions = zip(dropped, self.captions(indices, positions), strict=True)
        level = self.levels(uniform_for(seed_for(self.seed, LEVEL), positions))
        return {
            "latents": self.latents.sample(indices, posterior_noise),
            "noise": noise,
            "level": level,
            "timestep": level.timestep,
            "bins": quartile(self.levels, level),
            "text": self.text.rows(["" if drop else caption for drop, caption in captions]),
        }

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """One loss: the mean over samples of the weighted squared error."""
        x0, noise, level = batch["latents"], batch["noise"], batch["level"]
        embeds = self.text.embed(batch["text"], self.components["text_encoder"])
        sample = add_noise(x0, noise, level)
        output = self.components["unet"](sample, batch["timestep"], embeds, return_dict=False)[0]
        each = denoising_loss(output, x0, noise, level, self.prediction_type, self.weighting)
        yield "denoiser", each.mean(), {"loss_by_noise": ByBin(each.detach(), batch["bins"])}

    def pipeline(self, modules: Mapping[str, nn.Module]) -> TextToImagePipeline:
        """The components as a pipeline, with `modules` in the place of those of their names."""
        components = {**self.components, **modules}
        scheduler = components["scheduler"]
        components["scheduler"] = type(scheduler).from_config(scheduler.config)
        return TextToImagePipeline(
            **components, requires_safety_checker=False, default_guidance=self.drawing.guidance_scale
        )

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Draw the validation prompts, from the same noise every time, into <images seen>.png."""
        columns, prompts = self.drawing.images_per_prompt, list(self.drawing.prompts)
        if not prompts:
            return {}
        device = modules["unet"].device
        pipeline = self.pipeline(modules)
        pipeline.vae.to(device)
        pipeline.text_encoder.to(device)
        pipeline.set_progress_bar_config(disable=True)
        seed = seed_for(self.seed, VALIDATION)
        images = pipeline(
            prompts,
            num_images_per_prompt=columns,
            num_inference_steps=self.drawing.num_inference_steps,
            generator=[generator_for(seed, number) for number in range(columns * len(prompts))],
        ).images
        make_image_grid(images, rows=len(prompts), cols=columns).save(folder / f"{images_seen:012d}.png")
        return {}

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write a TextToImagePipeline; its text encoder is float32, for transformers keeps a file's dtype."""
        pipeline = self.pipeline(modules)
        if self.drawing.export_dtype == "float16":
            pipeline.register_modules(
                unet=copy.deepcopy(pipeline.unet).half(), vae=copy.deepcopy(pipeline.vae).half()
            )
        pipeline.save_pretrained(folder)
