"""One call of a guided pipeline, as the sampling loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import Denoised, ModelDenoiser
from guided_diffusers.guidance import Step
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.guided import GuidedPipeline
from guided_diffusers.sampling import StopSampling


class GuidedRun:
    """The denoiser of one call: it reads the pipeline's scale at each step, for callbacks change it."""

    def __init__(self, pipeline: GuidedPipeline, denoiser: ModelDenoiser, condition: Condition) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser
        self.condition = condition

    def run(self, step: Step) -> Denoised:
        """The guided x_0, under the guidance as it stands."""
        return self.pipeline._current_guidance()(self.denoiser).run(replace(step, condition=self.condition))

    def call_back(
        self, callback: Callable, names: Sequence[str], index: int, timestep: Tensor, sample: Tensor
    ) -> Tensor:
        """Call the user's callback, take over what it changed, and end the run where it says so.

        Raises:
            ValueError: What it returned or set is not what a callback may.
        """
        pipeline, images = self.pipeline, len(sample)
        given = {name: sample if name == "latents" else self._told(name) for name in names}
        before = pipeline._guidance_scale
        changed = callback(pipeline, index, timestep, dict(given))
        changed = {**given, **inputs.checked_return(changed, pipeline._callback_tensor_inputs)}
        latents = changed.get("latents", sample)
        if latents is not sample:
            inputs.check_latents(latents, sample.shape, "callback_on_step_end's latents")
            sample = latents.to(sample)
        pipeline._check_set_scale(images)
        gone = self._take_over(changed, given)
        if gone is not None:
            pipeline._null_is_off = gone and pipeline._scale_is_at_most_1()
        if pipeline._guidance_scale != before:
            pipeline._check_scale_is_taken()
            if pipeline.do_classifier_free_guidance:
                _ = self.condition.null  # where there is none, this is the place to say so
        if pipeline.interrupt:
            raise StopSampling(sample)
        return sample

    def _told(self, name: str) -> Tensor | None:
        """A tensor of the condition, as the callback sees it; this run has none."""

    def _take_over(self, changed: Mapping[str, Any], given: Mapping[str, Any]) -> bool | None:
        """Take what a callback made of the condition; whether it left the conditional half, None: neither."""


class PromptedRun(GuidedRun):
    """The denoiser of one call of a text-conditioned pipeline; callbacks may change its embeddings too.

    They see what those of diffusers see: `prompt_embeds` has the null's rows before the condition's while
    guidance asks for the null. One that gives back the condition's rows alone, and sets a scale of at most 1,
    has switched that guidance off.

    Args:
        pipeline: The pipeline.
        denoiser: Its network.
        prompt_embeds: `(images, length, width)`.
        negative_prompt_embeds: The same of the null, or None.
        encode_null: What gives them where they are None, when a term first asks.
        arguments: Further arguments of the network, of both conditions.
    """

    def __init__(
        self,
        pipeline: Any,
        denoiser: ModelDenoiser,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        encode_null: Callable[[], Tensor],
        arguments: Mapping[str, Any],
    ) -> None:
        self.positive, self.negative = prompt_embeds, negative_prompt_embeds
        self.encode_null, self.arguments = encode_null, arguments
        super().__init__(pipeline, denoiser, _PromptCondition(self))

    def null(self) -> Tensor:
        """The null's embeddings, encoded at the first call."""
        if self.negative is None:
            self.negative = self.encode_null()
        return self.negative

    def _told(self, name: str) -> Tensor | None:
        if name == "negative_prompt_embeds":
            return self.negative
        doubled = self.pipeline.do_classifier_free_guidance
        return torch.cat([self.null(), self.positive]) if doubled else self.positive

    def _take_over(self, changed: Mapping[str, Any], given: Mapping[str, Any]) -> bool | None:
        embeds, null = changed.get("prompt_embeds"), changed.get("negative_prompt_embeds")
        gone = None if embeds is None else self._take_prompt(embeds, given.get("prompt_embeds"))
        if null is not None and null is not given.get("negative_prompt_embeds"):
            name = "callback_on_step_end's negative_prompt_embeds"
            self.negative = inputs.check_rows(name, null, self.positive, [len(self.positive)])
        self.condition = _PromptCondition(self)
        return gone

    def _take_prompt(self, embeds: Tensor, given: Tensor | None) -> bool:
        """Take over a callback's `prompt_embeds`; whether they are without the null's rows."""
        images, off = len(self.positive), self.pipeline._scale_is_at_most_1()
        if images > 1 and off and torch.equal(embeds.to(self.positive), self.positive[-1:]):
            return True  # diffusers' own callbacks keep the last row alone, whatever the number of images
        if embeds is not given:
            like = self.positive if self.negative is None else self.negative
            name, rows = "callback_on_step_end's prompt_embeds", [images, 2 * images]
            embeds = inputs.check_rows(name, embeds, like, rows, any_length=self.negative is None)
        if len(embeds) == images:
            self.positive = embeds
            return True
        self.negative, self.positive = embeds.chunk(2)
        return False


class _PromptCondition(Condition):
    """The embeddings of a run as they stand; its null is encoded when a term first asks for it."""

    def __init__(self, run: PromptedRun) -> None:
        super().__init__({"encoder_hidden_states": run.positive, **run.arguments})
        object.__setattr__(self, "_run", run)

    @cached_property
    def null(self) -> Condition:
        """The same of the null's embeddings."""
        return Condition({**self.positive, "encoder_hidden_states": self._run.null()})
