"""diffusers' contract of callbacks, in one place: what one is given after a step, and may change.

`callback(pipeline, index, timestep, tensors) -> tensors`: the tensors are those it asked for by name; it may
give others back, and set `pipeline._guidance_scale` and `pipeline._interrupt`. What it changed is taken over
by the call's `Run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.guidance.base import checked_scale
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.guided import Call, check_count_of_scales
from guided_diffusers.pipelines.prompts import PromptCondition
from guided_diffusers.sampling import Run


def call_back(
    pipeline: Any, run: Run, call: Call, callback: Callable, names: Sequence[str], index: int
) -> Call:
    """Call a callback after a step of a run, and take over what it changed.

    Returns:
        The call as the callback leaves it.

    Raises:
        ValueError: What it returned or set is not what a callback may.
    """
    pipeline._call, pipeline._guidance_scale = call, call.scale
    given = {name: run.sample if name == "latents" else _told(run.condition, name, call) for name in names}
    changed = callback(pipeline, index, run.timesteps[index], dict(given))
    changed = {**given, **inputs.checked_return(changed, pipeline._callback_tensor_inputs)}
    latents = changed.get("latents", run.sample)
    if latents is not run.sample:
        inputs.check_latents(latents, run.sample.shape, "callback_on_step_end's latents")
        run.sample = latents.to(run.sample)
    after = replace(call, scale=_set_scale(pipeline, len(run.sample)))
    if isinstance(run.condition, PromptCondition):
        run.condition, without_null = _changed(run.condition, changed, given, after)
        if without_null is not None:
            after = replace(after, null_is_off=without_null and after.is_at_most_1)
    if after.scale != call.scale:
        after.check_scale_is_taken()
        if after.current.needs_null:
            _ = run.condition.null  # where there is none, this is the place to say so
    run.guidance = after.current
    pipeline._call, pipeline._guidance_scale = after, after.scale
    return after


def _set_scale(pipeline: Any, images: int) -> Any:
    """The scale as a callback has set it; ValueError where that is none."""
    scale = pipeline._guidance_scale
    scale = None if scale is None else checked_scale(scale, "_guidance_scale")
    check_count_of_scales("_guidance_scale", scale, images)
    return scale


def _told(condition: PromptCondition, name: str, call: Call) -> Tensor | None:
    """Embeddings as callbacks of diffusers see them: the null's rows first, while guidance asks for them."""
    if name == "negative_prompt_embeds":
        return condition.known_null_embeds
    if not call.current.needs_null:
        return condition.embeds
    return torch.cat([condition.null.positive["encoder_hidden_states"], condition.embeds])


def _changed(
    condition: PromptCondition, changed: Mapping[str, Any], given: Mapping[str, Any], call: Call
) -> tuple[PromptCondition, bool | None]:
    """What a callback made of the embeddings; and whether it left those of the null away, None: neither."""
    without_null, embeds = None, changed.get("prompt_embeds")
    if embeds is not None:
        condition, without_null = _with_prompts(condition, embeds, given.get("prompt_embeds"), call)
    null = changed.get("negative_prompt_embeds")
    if null is not None and null is not given.get("negative_prompt_embeds"):
        name, like = "callback_on_step_end's negative_prompt_embeds", condition.embeds
        condition = condition.with_null(inputs.check_rows(name, null, like, [len(like)]))
    return condition, without_null


def _with_prompts(
    condition: PromptCondition, embeds: Tensor, given: Tensor | None, call: Call
) -> tuple[PromptCondition, bool]:
    """The condition of a callback's `prompt_embeds`; and whether they are without the null's rows."""
    own, null = condition.embeds, condition.known_null_embeds
    images = len(own)
    if images > 1 and call.is_at_most_1 and torch.equal(embeds.to(own), own[-1:]):
        return condition, True  # diffusers' own callbacks keep the last row alone, whatever the images
    if embeds is not given:
        name, rows = "callback_on_step_end's prompt_embeds", [images, 2 * images]
        like = own if null is None else null
        embeds = inputs.check_rows(name, embeds, like, rows, any_length=null is None)
    if len(embeds) == images:
        return condition.with_embeds(embeds), True
    null, own = embeds.chunk(2)
    return condition.with_embeds(own).with_null(null), False
