"""Pipelines of diffusers that training leaves of transformers, called as those of this package are.

Their network is guided by `guide`, so that `generate`, `evaluate` and `sweep` draw with any guidance.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from guided_diffusers.core.checks import check_that
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance
from guided_diffusers.hub.entry_point import plain_class_name
from guided_diffusers.hub.inventory import WAY_OF_DRAWING
from guided_diffusers.pipelines.guided import GuidedMixin
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.stock.handle import guide
from guided_diffusers.stock.prompted import PROMPTED, Prompted

BY_CLASS = "DiTPipeline"
BY_PROMPT: dict[str, Prompted] = {row.pipeline: row for row in PROMPTED.values()}
SWITCH = 2.0
"""Any scale above 1 has a pipeline tell its network the null; under `guide` it has no other effect."""


class StockPipeline(GuidedMixin):
    """A pipeline of diffusers under `guide`; the arguments of its subclasses say what it draws for.

    Args:
        stock: The pipeline.
        index: Its model_index.json, which says how it is to be called where training has left it.
        scale_name: What its call names the guidance scale.
        scales: It multiplies noise by the scheduler's `init_noise_sigma`.
    """

    def __init__(
        self,
        stock: DiffusionPipeline,
        index: Mapping[str, Any],
        scale_name: str = "guidance_scale",
        scales: bool = False,
    ) -> None:
        self.stock, self.scale_name, self.scales = stock, scale_name, scales
        parameters = inspect.signature(type(stock).__call__).parameters
        own = ClassifierFreeGuidance(max(1.0, parameters[scale_name].default)).to_config()
        self.config = SimpleNamespace(
            default_guidance=index.get(WAY_OF_DRAWING, {}).get("default_guidance", own),
            num_inference_steps=parameters["num_inference_steps"].default,
        )

    @property
    def scheduler(self) -> Any:
        """The pipeline's; ValueError where one is set whose noise it does not scale."""
        return self.stock.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        fits = self.scales or float(getattr(scheduler, "init_noise_sigma", 1)) == 1
        allowed = f"one whose init_noise_sigma is 1: {type(self.stock).__name__} does not scale its noise"
        check_that(fits, "scheduler", type(scheduler).__name__, allowed)
        self.stock.scheduler = scheduler

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's."""
        return self.stock.components

    @property
    def device(self) -> torch.device:
        """The pipeline's."""
        return self.stock.device

    def to(self, device: torch.device) -> StockPipeline:
        """Move the pipeline."""
        self.stock.to(device)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """As of the pipeline."""
        self.stock.set_progress_bar_config(**config)

    def _draw(self, guidance: Guidance, num_inference_steps: int | None, **given: Any) -> Any:
        """Call the pipeline; ValueError: what `guide` refuses."""
        given[self.scale_name] = SWITCH if guidance.needs_null else 1.0
        steps = num_inference_steps or self.config.num_inference_steps
        with guide(self.stock, guidance):
            return self.stock(**given, num_inference_steps=steps)


class StockTextPipeline(StockPipeline):
    """One that draws for prompts."""

    def __init__(self, stock: DiffusionPipeline, index: Mapping[str, Any]) -> None:
        self.row = BY_PROMPT[plain_class_name(index)]
        super().__init__(stock, index, self.row.scale, self.row.prepares)
        kept = index.get(WAY_OF_DRAWING, {})
        own = {"max_sequence_length": self.row.length}
        self.told = own | {name: kept[name] for name in (*own, "height", "width") if name in kept}

    def __call__(
        self,
        prompt: Sequence[str],
        negative_prompt: Sequence[str] | None = None,
        *,
        generator: list[torch.Generator],
        guidance: Guidance,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Draw an image for each prompt.

        Raises:
            ValueError: What `guide` refuses.
        """
        null = [""] * len(prompt) if negative_prompt is None else list(negative_prompt)
        return self._draw(
            guidance,
            num_inference_steps,
            prompt=list(prompt),
            negative_prompt=null,
            **self.told,
            generator=generator,
            output_type=output_type,
            **self.row.call,
        )


class StockClassPipeline(StockPipeline):
    """One that draws for classes, by number or name."""

    def __call__(
        self,
        class_labels: Sequence[int | str],
        *,
        generator: list[torch.Generator],
        guidance: Guidance,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Draw an image for each class.

        Raises:
            ValueError: A class that the network does not know, or what `guide` refuses.
        """
        classes = [self._class(label) for label in class_labels]
        given = {"class_labels": classes, "generator": generator, "output_type": output_type}
        return self._draw(guidance, num_inference_steps, **given)

    def _class(self, label: int | str) -> int:
        """A class's number."""
        names = self.stock.labels
        if isinstance(label, int):
            count = 1 + max(names.values(), default=self.stock.transformer.config.num_embeds_ada_norm - 1)
            check_that(0 <= label < count, "prompt", label, f"a class from 0 and below {count}")
            return label
        allowed = f"a class: its number, or one of {', '.join(names)}" if names else "a class by its number"
        check_that(label in names, "prompt", label, allowed)
        return names[label]


def load_stock(source: Path | str, revision: str | None, index: Mapping[str, Any]) -> StockPipeline:
    """The pipeline of a folder or repository, loaded as safely as those of this package.

    Raises:
        OSError: As SafePipeline.from_pretrained.
    """
    stock = getattr(diffusers, plain_class_name(index))
    safe = type(stock.__name__, (SafePipeline, stock), {"__module__": stock.__module__})
    lacking = {name: None for name, value in index.items() if value == [None, None]}  # such as a T5
    kind = StockClassPipeline if stock.__name__ == BY_CLASS else StockTextPipeline
    return kind(safe.from_pretrained(source, revision=revision, **lacking), index)
