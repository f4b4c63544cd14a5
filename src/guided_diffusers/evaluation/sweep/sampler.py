"""A pipeline as the sampler of a sweep: a point and global indices in, 8-bit images out."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.compute import Compute, all_components, count_compute, networks_of
from guided_diffusers.evaluation.images import ImageSet
from guided_diffusers.evaluation.prompts import Prompts, stratified_prompts
from guided_diffusers.evaluation.sweep.spec import Point
from guided_diffusers.guidance import Guidance
from guided_diffusers.schedulers.adapt import prediction_type_of
from guided_diffusers.store.weight_files import weight_bytes

OWN_SCHEDULER = "own"


class PipelineSampler:
    """Draws the points of a sweep with any pipeline that has a denoiser and is called as those here are.

    What an image is asked to show follows from the pipeline's arguments: `prompt` is a caption of the data,
    `class_labels` the class. ImagePipeline takes no guidance, so its points have none.

    Args:
        pipeline: Draws; its scheduler is replaced by each point's, but for one of the name "own".
        make_scheduler: `(name, own) -> scheduler`, own being the pipeline's; None where all points are under
            that.
        weak: The weak network of autoguidance; None for the pipeline's own, where it has one.
    """

    def __init__(
        self,
        pipeline: Any,
        make_scheduler: Callable[[str, Any], Any] | None = None,
        weak: torch.nn.Module | None = None,
    ) -> None:
        self.pipeline, self.weak = pipeline, weak
        self.pipeline.set_progress_bar_config(disable=True)
        self._make_scheduler, self._own = make_scheduler, pipeline.scheduler
        self._parameters = inspect.signature(getattr(pipeline, "base", pipeline).__call__).parameters
        classes = self._parameters.get("class_labels")
        unet = getattr(pipeline, "unet", None)
        knows_classes = getattr(unet, "class_embedding", None) is not None
        self.takes_text = "prompt" in self._parameters
        self.takes_class = classes is not None and (knows_classes or classes.default is classes.empty)

    def prompts(self, data: ImageSet, count: int) -> Prompts:
        """What `count` images are asked to show: captions or classes of a data set, as the pipeline takes.

        Raises:
            ValueError: The data set has none.
        """
        return stratified_prompts(data, count, texts=self.takes_text, classes=self.takes_class)

    def sample(self, point: Point, prompts: Prompts, indices: Sequence[int]) -> Tensor:
        """Images of the global indices, `(len(indices), c, h, w)` uint8, each from its own generator."""
        self._set_scheduler(point)
        told: dict[str, Any] = {}
        if self.takes_text:
            told["prompt"] = [prompts.texts[index] for index in indices]
        if self.takes_class:
            told["class_labels"] = prompts.labels[list(indices)].tolist()
        if "batch_size" in self._parameters:
            told["batch_size"] = len(indices)
        if "guidance" in self._parameters:
            told["guidance"] = self.guidance(point)
        images = self.pipeline(
            **told,
            num_inference_steps=point.steps,
            generator=[generator_for(point.seed, index) for index in indices],
            output_type="pt",
        ).images
        return (images * 255).round().to(torch.uint8).cpu()

    def check(self, point: Point) -> None:
        """Raise ValueError for a point that the pipeline cannot draw, before anything is drawn."""
        self.guidance(point)
        self._set_scheduler(point)

    def _set_scheduler(self, point: Point) -> None:
        own = point.scheduler == OWN_SCHEDULER
        self.pipeline.scheduler = self._own if own else self._make_scheduler(point.scheduler, self._own)

    def guidance(self, point: Point) -> Guidance:
        """The guidance of a point, with the pipeline's own networks and the weak one where a term needs one.

        Raises:
            ValueError: A term that is unknown, or that needs a network that is not there, or any term for a
                pipeline that takes no guidance.
        """
        if point.guidance and "guidance" not in self._parameters:
            name = type(self.pipeline).__name__
            raise ValueError(f"arm {point.arm} has guidance, and {name} takes none; allowed: an empty arm")
        if not point.guidance:
            return Guidance.from_config([])
        if self.weak is None:
            return self.pipeline.guidance_from_config(point.guidance)
        weak = ModelDenoiser(self.weak, prediction_type_of(self._own))
        return self.pipeline.guidance_from_config(point.guidance, weak=weak)

    def compute(self, point: Point, prompts: Prompts) -> Compute:
        """What an image costs, counted on the first."""
        networks = networks_of(self.pipeline.components)
        if self.weak is not None:
            networks["weak"] = self.weak
        return count_compute(networks, lambda: self.sample(point, prompts, [0]), images=1)

    def identity(self) -> dict[str, Any]:
        """A hash of all weights and the scheduler's configuration."""
        digest = hashlib.sha256(repr(sorted(dict(self._own.config).items(), key=str)).encode())
        networks = all_components(self.pipeline.components) | {"weak": self.weak}
        for name, network in sorted(networks.items()):
            if isinstance(network, torch.nn.Module):
                digest.update(name.encode())
                for key, _, data in weight_bytes(network):
                    digest.update(key.encode() + data)
        for stage in getattr(self.pipeline, "stages", ())[1:]:  # what no point replaces
            settings = [{**stage.config}, {**stage.scheduler.config}]
            digest.update(repr([sorted(each.items(), key=str) for each in settings]).encode())
        name = type(getattr(self.pipeline, "stock", self.pipeline)).__name__
        return {"pipeline": name, "weights": digest.hexdigest()[:16]}
