"""The default guidance that a checkpoint keeps as JSON: made of what a pipeline is given, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from guided_diffusers.core.checks import as_number, shown
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance
from guided_diffusers.guidance.base import checked_scale
from guided_diffusers.hub.inventory import WAY_OF_DRAWING


def default_guidance_config(guidance: Any, **networks: Any) -> list[dict[str, Any]] | None:
    """A default guidance as JSON: of a Guidance, of its configuration, or of a scale; None stays None.

    Args:
        guidance: What it is given as.
        networks: The networks that the pipeline brings to its default guidance, by the term's argument.

    Raises:
        ValueError: None of these, or a term that needs a network.
    """
    if guidance is None:
        return None
    if not isinstance(guidance, Guidance | Mapping | list | tuple):
        allowed = "a Guidance, its to_config() value, or a scale"
        if as_number(guidance) is None or math.isnan(guidance):
            raise ValueError(f"default_guidance is {shown(guidance)}; allowed: {allowed}")
        guidance = ClassifierFreeGuidance(checked_scale(guidance, "default_guidance"))
    if not isinstance(guidance, Guidance):
        check_networks(guidance, networks, "give weak_unet, or another default_guidance, such as a scale")
        guidance = Guidance.from_config(guidance, **networks)
    return guidance.to_config()


def keep_way_of_drawing(pipeline: DiffusionPipeline, scale: float, **call: Any) -> None:
    """Let a pipeline of diffusers keep in its model_index.json how `generate` is to call it.

    Such a pipeline takes other keys for components, unless they begin with an underscore.

    Args:
        pipeline: Of a class of diffusers.
        scale: Of its default guidance.
        call: Further arguments.
    """
    pipeline.register_to_config(
        **{WAY_OF_DRAWING: {"default_guidance": default_guidance_config(scale), **call}}
    )


def check_networks(config: Any, networks: Mapping[str, Any], remedy: str) -> None:
    """Raise ValueError, and say what to do, where a configuration needs a weak network that is not there."""
    for term in [config] if isinstance(config, Mapping) else config:
        if isinstance(term, Mapping) and term.get("term") == "AutoGuidance" and "weak" not in networks:
            raise ValueError(f"AutoGuidance needs a weak network, and the pipeline has none: {remedy}")
