"""One call of a text-conditioned pipeline, as the sampling loop sees it."""

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


class PromptedRun:
    """The denoiser of one call.

    It reads the pipeline's scale and the embeddings at each step, for callbacks change them.
    """

    def __init__(
        self,
        pipeline: GuidedPipeline,
        denoiser: ModelDenoiser,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
    ) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser
        self.embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        self.condition = self._make_condition()

    def _make_condition(self) -> Condition:
        arguments: dict[str, Any] = {"return_dict": False}
        if self.pipeline.cross_attention_kwargs is not None:
            arguments["cross_attention_kwargs"] = self.pipeline.cross_attention_kwargs
        positive, negative = self.embeds.values()
        return Condition(
            {"encoder_hidden_states": positive, **arguments},
            None if negative is None else {"encoder_hidden_states": negative, **arguments},
        )

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
        embeds = {name: changed.get(name, value) for name, value in self.embeds.items()}
        if any(embeds[name] is not self.embeds[name] for name in embeds):
            self.embeds = embeds
            self.condition = self._make_condition()
        if self.pipeline.interrupt:
            raise StopSampling(sample)
        return sample
