"""Images of a denoiser without a prompt: of a class or none, in pixels or in an autoencoder's latents.

diffusers' DDPMPipeline draws unconditional pixels; this is for what it has no argument for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from guided_diffusers.core.checks import check_int, shown
from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.models.labels import class_ids
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import inputs, unprompted
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.sampling import Run
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
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: How many.
            class_labels: A class for all, or one an image.
            generator: Source of the noise; a list has one generator an image.
            num_inference_steps: Steps of the scheduler.
            output_type: "pil", "np", "pt" ((batch, channels, height, width) in [0, 1]) or "latent".
            return_dict: An output object and not a tuple.

        Raises:
            ValueError: Classes for a network without, none for a network with, or not one an image; another
                argument that is out of range or of the wrong type.
        """
        self._check_unet()
        inputs.check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        check_int("batch_size", batch_size, 1)
        inputs.check_generator(generator, batch_size)
        labels = self._labels(class_labels, batch_size)
        run = Run(
            ModelDenoiser(self.unet, prediction_type_of(self.scheduler)),
            self.scheduler,
            unprompted.noise_for(self.unet, batch_size, generator, self._execution_device),
            labels,
            num_inference_steps=num_inference_steps,
            generator=generator,
        )
        with self.progress_bar(total=len(run.timesteps)) as progress:
            for step in run:
                run.advance(step)
                progress.update()
        images = unprompted.images_of(self.vae, run.sample, output_type, generator)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, classes: Any, count: int) -> dict[str, Tensor]:
        """The network's `class_labels`, where it takes any."""
        known = self.unet.class_embedding is not None
        if known != (classes is not None):
            allowed = "a class for all, or one an image" if known else "None: the network has no classes"
            raise ValueError(f"class_labels is {shown(classes)}; allowed: {allowed}")
        if not known:
            return {}
        labels = class_ids(classes, self.unet.config.num_class_embeds, argument="class_labels").reshape(-1)
        if len(labels) not in (1, count):
            raise ValueError(f"class_labels has {len(labels)} classes for {count} images; give 1 or {count}")
        return {"class_labels": labels.expand(count).to(self._execution_device)}
