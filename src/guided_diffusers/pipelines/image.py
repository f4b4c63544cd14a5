"""Images of a denoiser without a prompt: of a class or none, in pixels or in an autoencoder's latents.

diffusers' DDPMPipeline draws unconditional pixels; this is for what it has no argument for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.labels import told_classes
from guided_diffusers.guidance import GuidanceSum
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import unprompted
from guided_diffusers.pipelines.drawing import Asked, Drawing
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.schedulers.adapt import prediction_type_of


class ImagePipeline(SafePipeline):
    """Draws images from a `UNet2DModel`.

    Args:
        unet: The denoiser; with class embeddings it needs `class_labels`.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`.
        vae: The autoencoder whose standardised latents the denoiser works on, of
            `models.latents.IMAGE_AUTOENCODERS`; None for pixels.

    Raises:
        ValueError: The autoencoder is of another class, or does not fit the denoiser.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]

    def __init__(self, unet: Any, scheduler: Any, vae: Any = None) -> None:
        super().__init__()
        check_vae(unet, vae)
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

    def _check_unet(self) -> None:
        unprompted.check_parts(self.unet, self.vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        mu: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: How many.
            class_labels: A class for all, or one an image.
            generator: Source of the noise; a list has one generator an image.
            num_inference_steps: Steps of the scheduler.
            output_type: "pil", "np", "pt" ((batch, channels, height, width) in [0, 1]) or "latent".
            return_dict: An output object and not a tuple.
            mu: The shift of the noise levels, for a scheduler with `use_dynamic_shifting`, which needs one.

        Raises:
            ValueError: Classes for a network without, none for a network with, or not one an image; another
                argument that is out of range or of the wrong type.
        """
        return self._asked(locals()).draw()

    def _asked(self, given: Mapping[str, Any]) -> Asked:
        """A call with these arguments, checked."""
        self._check_unet()
        count = check_int("batch_size", given["batch_size"], 1)
        shape = unprompted.sample_shape(self.unet, count)
        drawing = Drawing.of(given, shape)
        known = self.unet.config.get("num_class_embeds")
        labels = told_classes(given["class_labels"], known, count)
        told = {} if labels is None else {"class_labels": labels.to(self._execution_device)}
        draw = partial(self._draw, drawing, shape, told)
        return Asked(draw, drawing, unprompted.pictures(self.vae, shape))

    def _draw(
        self, drawing: Drawing, shape: Sequence[int], told: dict[str, Tensor]
    ) -> ImagePipelineOutput | tuple[Any]:
        denoiser = ModelDenoiser(self.unet, prediction_type_of(self.scheduler))
        device = self._execution_device
        run = drawing.run(denoiser, self.scheduler, shape, self.unet.dtype, device, GuidanceSum())
        run.condition = told
        with self.progress_bar(total=len(run.timesteps)) as progress:
            for step in run:
                run.advance(step)
                progress.update()
        images = unprompted.images_of(self.vae, run.sample, drawing.output_type, drawing.generator)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if drawing.return_dict else (images,)
