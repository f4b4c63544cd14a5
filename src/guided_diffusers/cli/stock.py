"""Pipelines of diffusers that training leaves of transformers, called as those of this package are.

Their network is guided by `guide`, so that `generate` draws with any guidance, and a PNG says which.
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
from guided_diffusers.pipelines.default_guidance import WAY_OF_DRAWING
from guided_diffusers.pipelines.guided import GuidedMixin
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.stock.handle import guide
from guided_diffusers.stock.prompted import PROMPTED, Prompted

BY_CLASS = "DiTPipeline"
BY_PROMPT: dict[str, Prompted] = {row.pipeline: row for row in PROMPTED.values()}
SWITCH = 2.0
"""Any scale above 1 has a pipeline tell its network the null; under `guide` it has no other effect."""


class StockPipeline(GuidedMixin):
    """A pipeline of diffusers that draws for prompts, or for classes by number or name.

    Args:
        base: The pipeline.
        index: Its model_index.json, which says how it is to be called where training has left it.
    """

    def __init__(self, base: DiffusionPipeline, index: Mapping[str, Any]) -> None:
        self.base, self.row = base, BY_PROMPT.get(plain_class_name(index))
        self.scale_name = "guidance_scale" if self.row is None else self.row.scale
        parameters = inspect.signature(type(base).__call__).parameters
        own = ClassifierFreeGuidance(max(1.0, parameters[self.scale_name].default)).to_config()
        kept = index.get(WAY_OF_DRAWING, {})
        self.length = None if self.row is None else kept.get("max_sequence_length", self.row.length)
        self.config = SimpleNamespace(
            default_guidance=kept.get("default_guidance", own),
            num_inference_steps=parameters["num_inference_steps"].default,
        )

    @property
    def scheduler(self) -> Any:
        """The pipeline's."""
        return self.base.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.base.scheduler = scheduler

    @property
    def device(self) -> torch.device:
        """The pipeline's."""
        return self.base.device

    def to(self, device: torch.device) -> StockPipeline:
        """Move the pipeline."""
        self.base.to(device)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """As of the pipeline."""
        self.base.set_progress_bar_config(**config)

    def __call__(
        self,
        prompt: Sequence[str] = (),
        class_labels: Sequence[int | str] = (),
        negative_prompt: Sequence[str] | None = None,
        *,
        generator: list[torch.Generator],
        guidance: Guidance,
        num_inference_steps: int | None = None,
    ) -> Any:
        """Draw an image for each prompt or class.

        Raises:
            ValueError: A class that the network does not know, or what `guide` refuses.
        """
        if self.row is None:
            given: dict[str, Any] = {"class_labels": [self._class(label) for label in class_labels]}
        else:
            null = [""] * len(prompt) if negative_prompt is None else list(negative_prompt)
            given = {"prompt": list(prompt), "negative_prompt": null, **self.row.call}
            given["max_sequence_length"] = self.length
        given[self.scale_name] = SWITCH if guidance.needs_null else 1.0
        steps = num_inference_steps or self.config.num_inference_steps
        with guide(self.base, guidance):
            return self.base(**given, generator=generator, num_inference_steps=steps)

    def _class(self, label: int | str) -> int:
        """A class's number."""
        if isinstance(label, int):
            count = self.base.transformer.config.num_embeds_ada_norm
            check_that(0 <= label < count, "prompt", label, f"a class from 0 and below {count}")
            return label
        names = self.base.labels
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
    return StockPipeline(safe.from_pretrained(source, revision=revision, **lacking), index)
