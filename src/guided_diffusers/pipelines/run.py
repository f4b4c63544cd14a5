"""One call of a guided pipeline, as the sampling loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from guided_diffusers.conditioning import Condition
from guided_diffusers.denoiser import Denoised, ModelDenoiser
from guided_diffusers.guidance import Step
from guided_diffusers.pipelines.guided import GuidedPipeline
from guided_diffusers.sampling import StopSampling


class GuidedRun:
    """The denoiser of one call: it reads the pipeline's scale at each step, for callbacks change it."""

    def __init__(self, pipeline: GuidedPipeline, denoiser: ModelDenoiser, condition: Condition) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser
        self.condition = condition
        self.embeds: dict[str, Tensor | None] = {}

    def run(self, step: Step) -> Denoised:
        """The guided x_0, under the guidance as it stands."""
        return self.pipeline._current_guidance()(self.denoiser).run(replace(step, condition=self.condition))

    def call_back(
        self, callback: Callable, names: Sequence[str], index: int, timestep: Tensor, sample: Tensor
    ) -> Tensor:
        """Call the user's callback, take over what it changed, and end the run where it says so."""
        tensors = {"latents": sample, **self.embeds}
        changed = callback(self.pipeline, index, timestep, {name: tensors[name] for name in names}) or {}
        sample = changed.get("latents", sample)
        self._take_over({name: changed.get(name, value) for name, value in self.embeds.items()})
        if self.pipeline.interrupt:
            raise StopSampling(sample)
        return sample

    def _take_over(self, embeds: dict[str, Tensor | None]) -> None:
        """What a callback made of the condition's tensors; this run has none."""


class PromptedRun(GuidedRun):
    """The denoiser of one call of a text-conditioned pipeline; callbacks may change its embeddings too."""

    def __init__(
        self,
        pipeline: Any,
        denoiser: ModelDenoiser,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
    ) -> None:
        self.pipeline = pipeline
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        super().__init__(pipeline, denoiser, self._make_condition(embeds))
        self.embeds = embeds

    def _make_condition(self, embeds: dict[str, Tensor | None]) -> Condition:
        arguments: dict[str, Any] = {"return_dict": False}
        if self.pipeline.cross_attention_kwargs is not None:
            arguments["cross_attention_kwargs"] = self.pipeline.cross_attention_kwargs
        positive, negative = embeds.values()
        return Condition(
            {"encoder_hidden_states": positive, **arguments},
            None if negative is None else {"encoder_hidden_states": negative, **arguments},
        )

    def _take_over(self, embeds: dict[str, Tensor | None]) -> None:
        if any(embeds[name] is not self.embeds[name] for name in embeds):
            self.embeds, self.condition = embeds, self._make_condition(embeds)
