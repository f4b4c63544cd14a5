"""A text-to-image pipeline as the drawer of a sweep: a point and global indices in, 8-bit images out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.compute import Compute, count_compute, networks_of
from guided_diffusers.evaluation.prompts import Prompts
from guided_diffusers.evaluation.sweep import Point
from guided_diffusers.guidance import Guidance
from guided_diffusers.pipelines.text_to_image import TextToImagePipeline
from guided_diffusers.schedulers.adapt import prediction_type_of

OWN_SCHEDULER = "own"


class PipelineDrawer:
    """Draws the points of a sweep with one pipeline.

    Args:
        pipeline: Draws; its scheduler is replaced by each point's, but for one of the name "own".
        make_scheduler: `(name, config) -> scheduler`, the config being that of the pipeline's own.
        weak: The weak network of autoguidance; None for the pipeline's own, where it has one.
    """

    def __init__(
        self,
        pipeline: TextToImagePipeline,
        make_scheduler: Callable[[str, Any], Any],
        weak: torch.nn.Module | None = None,
    ) -> None:
        self.pipeline, self.weak = pipeline, weak
        self.pipeline.set_progress_bar_config(disable=True)
        self._make_scheduler, self._own = make_scheduler, pipeline.scheduler
        self._prediction_type = prediction_type_of(pipeline.scheduler)

    def draw(self, point: Point, prompts: Prompts, indices: Sequence[int]) -> Tensor:
        """Images of the global indices, `(len(indices), c, h, w)` uint8, each from its own generator."""
        own = point.scheduler == OWN_SCHEDULER
        self.pipeline.scheduler = (
            self._own if own else self._make_scheduler(point.scheduler, self._own.config)
        )
        images = self.pipeline(
            [prompts.texts[index] for index in indices],
            guidance=self.guidance(point),
            num_inference_steps=point.steps,
            generator=[generator_for(point.seed, index) for index in indices],
            output_type="pt",
        ).images
        return (images * 255).round().to(torch.uint8).cpu()

    def guidance(self, point: Point) -> Guidance:
        """The guidance of a point, with the weak network where a term needs one."""
        networks = self.pipeline._guidance_networks()
        if self.weak is not None:
            networks["weak"] = ModelDenoiser(self.weak, self._prediction_type)
        return Guidance.from_config(point.guidance, **networks)

    def compute(self, point: Point, prompts: Prompts) -> Compute:
        """What an image costs, counted on the first."""
        networks = networks_of(self.pipeline.components)
        if self.weak is not None:
            networks["weak"] = self.weak
        return count_compute(networks, lambda: self.draw(point, prompts, [0]), images=1)

    def identity(self) -> dict[str, Any]:
        """A hash of all weights and the scheduler's configuration."""
        digest = hashlib.sha256(repr(sorted(dict(self._own.config).items(), key=str)).encode())
        networks = dict(self.pipeline.components) | {"weak": self.weak}
        for name, network in sorted(networks.items()):
            if isinstance(network, torch.nn.Module):
                digest.update(name.encode())
                for key, tensor in sorted(network.state_dict().items()):
                    digest.update(key.encode())
                    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return {"pipeline": type(self.pipeline).__name__, "weights": digest.hexdigest()[:16]}
