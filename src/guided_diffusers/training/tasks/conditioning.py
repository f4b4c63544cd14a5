"""What a denoiser is told in training, captions, classes or nothing, and the pipeline that comes of it.

A dropped condition is what classifier-free guidance takes for the null one: of captions the empty prompt, of
classes the network's last, which stands for none.

References:
    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, DiTPipeline, UNet2DModel
from torch import Tensor, nn

from guided_diffusers.core.declared import Share
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.likelihood.bound import estimated_bound
from guided_diffusers.pipelines import TextToImagePipeline
from guided_diffusers.pipelines.default_guidance import keep_way_of_drawing
from guided_diffusers.pipelines.image import ImagePipeline
from guided_diffusers.training.data.rows import StreamedLabels
from guided_diffusers.training.engine.config import option
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.tasks.encoded_text import EncodedText
from guided_diffusers.training.tasks.kept import Classes, keep_classes, keep_tokenizer
from guided_diffusers.training.tasks.network import class_rows, component_of
from guided_diffusers.training.tasks.objective import WEIGHTING, DenoisingConfig, ObjectiveConfig, Weighting

DIT_NULL = 1000
"""The class that means none in diffusers' DiTPipeline."""


@dataclass(frozen=True, kw_only=True)
class TextDenoisingConfig(DenoisingConfig):
    """What a denoiser with text learns: noise levels, weights, dropped captions."""

    weighting: Weighting = option("min_snr", WEIGHTING)
    caption_dropout: Share = option(0.1, "share of captions replaced by the empty prompt")


@dataclass(frozen=True, kw_only=True)
class ClassObjectiveConfig(ObjectiveConfig):
    """What a denoiser without text learns, at which timesteps, and dropped classes."""

    class_dropout: Share = option(0.0, "share of labels replaced by the null class, the network's last")


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """What is drawn for validation, and how the result is written."""

    prompts: tuple[str, ...] = option((), "prompts to draw: a row of the picture each")
    images_per_prompt: int = option(8, "columns of the picture")
    num_inference_steps: int = option(25, "steps of the scheduler")
    guidance_scale: float = option(2.0, "gamma; it is also saved as the checkpoint's default guidance")
    export_dtype: Literal["float32", "float16"] = option("float32", "of unet and vae in final/")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is drawn and measured with the averaged weights."""

    images: int = option(64, "images to draw, in rows of eight; 0: none")
    num_inference_steps: int = option(50, "steps of the scheduler")
    guidance_scale: float = option(1.0, "gamma of the pictures of a DiT, which needs dropped classes above 1")
    split: str = option("test", "held-out split of the data, for the bound")
    bound_images: int = option(0, "of it, so many images' bits/dim are estimated (pixels only); 0: none")
    bound_draws: int = option(10, "forwards an image for that")


class Conditioning(Protocol):
    """What the network is told beside the noised image; by default nothing, of nothing trained.

    Attributes:
        trained: its networks that are trained with the denoiser, by their names in the pipeline.
        posterior_first: of the two draws of a latent's sample, the posterior's comes before eps.
        drawing_stream: of the noise of the pictures.
        export_dtype: of unet and vae in what is saved.
        further_channels: of the network's input, beside those of the noised image.
    """

    trained: Mapping[str, nn.Module] = MappingProxyType({})
    posterior_first: bool = False
    drawing_stream: Stream = Stream.IMAGES_DRAWN
    export_dtype: str = "float32"
    further_channels: int = 0

    def check(self, unet: nn.Module) -> None:
        """Raise ValueError where the network is not for this condition."""

    def network(self, unet: nn.Module) -> nn.Module:
        """What is called as `network(x_t, timestep, **inputs)`."""
        return unet

    def begin(self, folder: Path) -> None:
        """Write what belongs to the run beside its weights."""

    def rows(self, indices: list[int], positions: list[int], seed: int) -> dict[str, Tensor]:
        """CPU tensors of some samples, some of their conditions dropped; in the data thread."""
        return {}

    def inputs(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's keyword arguments, from `rows` on the device."""
        return rows

    def pipeline(self, modules: Mapping[str, nn.Module], scheduler: Any) -> DiffusionPipeline:
        """What draws with `modules` in the place of the networks of their names."""

    def pictures(self) -> tuple[dict[str, Any], int, int]:
        """The pipeline's arguments for the pictures of validation, their number, and columns."""

    def measure(self, unet: nn.Module, scheduler: Any) -> Metrics:
        """Figures on held-out data."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptConditioning(Conditioning):
    """Captions, whichever pipeline comes of it.

    Attributes:
        captions: (indices, positions) -> one caption a sample, or its embedding.
        dropout: the share that becomes the empty prompt.
        drawing: what to draw.
        joint: whether the text encoders are trained.
    """

    captions: Callable[[list[int], list[int]], list[Any]]
    dropout: float
    drawing: DrawingConfig
    joint: bool
    posterior_first = True
    drawing_stream = Stream.PROMPTS_DRAWN

    @property
    def export_dtype(self) -> str:
        """As configured."""
        return self.drawing.export_dtype

    def texts(self, indices: list[int], positions: list[int], seed: int) -> list[Any]:
        """The captions of some samples; of those that are dropped the empty prompt."""
        drop = dropped(seed, Stream.CAPTION_DROPOUT, positions, self.dropout)
        captions = self.captions(indices, positions)
        return ["" if each else caption for each, caption in zip(drop, captions, strict=True)]

    def pictures(self) -> tuple[dict[str, Any], int, int]:
        """A row of pictures a prompt."""
        prompts, columns = list(self.drawing.prompts), self.drawing.images_per_prompt
        steps = self.drawing.num_inference_steps
        arguments = {"prompt": prompts, "num_images_per_prompt": columns, "num_inference_steps": steps}
        return arguments, columns * len(prompts), columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions(PromptConditioning):
    """Captions, embedded by a text encoder that is trained too or frozen; ends in a TextToImagePipeline.

    Attributes:
        components: vae, text_encoder and tokenizer, as the pipeline takes them.
        text: the captions' embeddings.
    """

    components: Mapping[str, Any]
    text: EncodedText

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The text encoder, or nothing."""
        return {"text_encoder": self.components["text_encoder"]} if self.joint else {}

    def begin(self, folder: Path) -> None:
        """Write the run's tokenizer."""
        keep_tokenizer(folder, self.components["tokenizer"])

    def rows(self, indices: list[int], positions: list[int], seed: int) -> dict[str, Tensor]:
        """What `text` looks up of the captions."""
        return {"text": self.text.rows(self.texts(indices, positions, seed))}

    def inputs(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """The embeddings, (batch, length, width)."""
        return {"encoder_hidden_states": self.text.embed(rows["text"], self.components["text_encoder"])}

    def pipeline(self, modules: Mapping[str, nn.Module], scheduler: Any) -> TextToImagePipeline:
        """With the guidance of the pictures as its default."""
        options = {"requires_safety_checker": False, "default_guidance": self.drawing.guidance_scale}
        options["pixels"] = self.components["vae"] is None
        return TextToImagePipeline(**{**self.components, **modules, "scheduler": scheduler}, **options)


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels(Conditioning):
    """Classes, or nothing; ends in an ImagePipeline.

    Of unconditional pixels it is diffusers' DDPMPipeline, and of a transformer diffusers' DiTPipeline.

    Attributes:
        labels: the class of each row, (rows,) int64, or a stream's; None for an unconditional model.
        num_class_embeds: the network's classes, of which the last is the null one where labels are dropped.
        dropout: the share of labels that becomes it.
        validation: what to draw and measure.
        vae: the autoencoder of the latents; None for pixels.
        held_out: pixels whose bits/dim are estimated, with their labels where there are classes.
        classes: those of the run, where it has any; they are written into its folder.
        transformer: a DiT is trained.
    """

    labels: Tensor | StreamedLabels | None = None
    num_class_embeds: int | None = None
    dropout: float = 0.0
    validation: ValidationConfig
    vae: nn.Module | None = None
    held_out: tuple[Tensor, Tensor | None] | None = None
    classes: Classes | None = None
    transformer: bool = False

    def check(self, unet: nn.Module) -> None:
        """Raise ValueError for a network without classes for labels, or the reverse."""
        known = class_rows(unet)
        told = known is not None or getattr(unet, "class_embedding", None) is not None
        if (self.labels is None) == told:
            raise ValueError(
                "classes need both label_column and unet.num_class_embeds (or class_embed_type); one of "
                "them is given without the other"
            )
        if self.labels is None:
            if self.dropout > 0:
                raise ValueError("class_dropout needs classes: name their column in label_column")
            return
        held_out = None if self.held_out is None else self.held_out[1]
        classes = 1 + max(int(labels.max()) for labels in (self.labels, held_out) if labels is not None)
        if component_of(unet) == "transformer":
            if self.vae is None:
                raise ValueError("autoencoder is None; allowed: one, which diffusers' DiTPipeline draws by")
            if self.dropout > 0 and known != DIT_NULL + 1:
                raise ValueError(
                    f"denoiser.arguments.num_embeds_ada_norm is {known - 1}; allowed: {DIT_NULL}, which "
                    "diffusers' DiTPipeline takes for the class that means none, whatever the classes"
                )
        if self.dropout > 0 and (known is None or known <= classes):
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

    def rows(self, indices: list[int], positions: list[int], seed: int) -> dict[str, Tensor]:
        """The labels, some of them replaced by the null class."""
        if self.labels is None:
            return {}
        labels = self.labels[indices]
        if self.dropout > 0:
            drop = dropped(seed, Stream.CLASS_DROPOUT, positions, self.dropout)
            labels = torch.where(drop, self.num_class_embeds - 1, labels)
        return {"class_labels": labels}

    def pipeline(self, modules: Mapping[str, nn.Module], scheduler: Any) -> DDPMPipeline | ImagePipeline:
        """A DDPMPipeline of diffusers for unconditional pixels, its DiTPipeline, else an ImagePipeline."""
        if "transformer" in modules:
            names = dict(enumerate((self.classes.names or []) if self.classes is not None else []))
            pipeline = DiTPipeline(modules["transformer"], self.vae, scheduler, names)
            pipeline.register_to_config(id2label=names)  # it reads them from its folder, and writes none
            keep_way_of_drawing(pipeline, self.validation.guidance_scale)
            return pipeline
        if self.labels is None and self.vae is None and type(modules["unet"]) is UNet2DModel:
            return DDPMPipeline(modules["unet"], scheduler)
        return ImagePipeline(unet=modules["unet"], scheduler=scheduler, vae=self.vae)

    def pictures(self) -> tuple[dict[str, Any], int, int]:
        """Images of the classes in turn, in rows of at most eight."""
        count = self.validation.images
        arguments: dict[str, Any] = {"num_inference_steps": self.validation.num_inference_steps}
        if self.transformer:
            arguments["guidance_scale"] = self.validation.guidance_scale
        else:
            arguments["batch_size"] = count
        if self.labels is not None:
            classes = int(self.labels.max()) + 1
            arguments["class_labels"] = [number % classes for number in range(count)]
        return arguments, count, next(n for n in range(8, 0, -1) if count % n == 0)

    def measure(self, unet: nn.Module, scheduler: Any) -> Metrics:
        """The estimated bits/dim of the held-out pixels."""
        if self.held_out is None:
            return {}
        pixels, labels = (None if part is None else part.to(unet.device) for part in self.held_out)
        condition = None if labels is None else {"class_labels": labels}
        draws = self.validation.bound_draws
        bounds = estimated_bound(unet, {"bits_per_dim": scheduler}, pixels, draws, condition=condition)
        return {name: bound.total.mean() for name, bound in bounds.items()}


def dropped(seed: int, stream: Stream, positions: list[int], share: float) -> Tensor:
    """Which of the samples at some positions in training have their condition dropped, (batch,) bool."""
    return uniform_for(seed_for(seed, stream), positions) < share
