"""What `guide` refuses at its door and at the door of a call: pipelines, and arguments of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines import ModularPipeline

from guided_diffusers.core.checks import check_number, shown
from guided_diffusers.core.networks import unwrapped
from guided_diffusers.guidance.base import Guidance
from guided_diffusers.guidance.scale import MAX_SCALE
from guided_diffusers.stock.facts import facts_of, parameters_of

NETWORKS = ("unet", "transformer", "transformer_2")
"""What pipelines call the networks that predict."""

_REPLACED = {
    "skip_guidance_layers": (None, "AutoGuidance(views.skip_layers(pipeline.transformer, layers), scale)"),
    "pag_scale": (0.0, "AutoGuidance(views.identity_attention(network, layers), 1 + pag_scale)"),
    "cfg_trunc_ratio": (1.0, "an interval of the term"),
    "cfg_truncation": (1.0, "an interval of the term"),
}
"""Arguments of pipelines that guide in a way of their own: the value that switches it off, and a term."""


_SEVERAL = {
    "Cosmos3OmniTransformer": "video, sound and actions",
    "Kandinsky6Transformer3DModel": "video and sound",
    "LTX2VideoTransformer3DModel": "video and sound",
    "MiniMaxH3Transformer3DModel": "video and sound",
}
"""Networks that predict several things at once, each stepped by a scheduler of its own."""
_SCALES = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")
"""Arguments of pipelines that scale the one guidance of a network."""
_FURTHER_SCALES = (
    "image_guidance_scale",
    "img_guidance_scale",
    "edit_guidance_scale",
    "source_guidance_scale",
)
"""Arguments of pipelines that ask under more conditions than one and its null."""


def check_pipeline(pipeline: Any) -> None:
    """Raise ValueError for what `guide` cannot guide, whatever the terms and the call."""
    if not isinstance(pipeline, DiffusionPipeline | ModularPipeline):
        raise ValueError(f"pipeline is {shown(pipeline)}; allowed: a pipeline of diffusers, modular or not")
    name = type(pipeline).__name__
    if getattr(type(pipeline), "_handle", None) is not None:
        raise ValueError(f"the {name} is guided already: remove that guidance first, or add the terms")
    if "guidance" in parameters_of(type(pipeline).__call__):
        raise ValueError(f"a {name} takes terms in a call: give it guidance=")
    if getattr(pipeline, "scheduler", None) is None or not networks_of(pipeline):
        raise ValueError(
            f"a {name} has not both a scheduler and one of {', '.join(NETWORKS)}; guide works with these"
        )
    further = [each for each in _FURTHER_SCALES if each in parameters_of(type(pipeline).__call__)]
    if further:
        raise ValueError(
            f"a {name} has {further[0]}, for a condition beside the one that it guides by; guide works with "
            "a condition and its null"
        )
    kinds = [type(unwrapped(getattr(pipeline, each))).__name__ for each in networks_of(pipeline)]
    several = next((kind for kind in kinds if kind in _SEVERAL), None)
    if several is not None:
        raise ValueError(
            f"the {several} of a {name} predicts {_SEVERAL[several]} at once; guide works with one "
            "prediction a step"
        )


def networks_of(pipeline: Any) -> list[str]:
    """The names of a pipeline's networks that predict."""
    return [name for name in NETWORKS if isinstance(getattr(pipeline, name, None), torch.nn.Module)]


def check_call(
    pipeline: Any, guidance: Mapping[str, Guidance], own_null: bool, arguments: Mapping[str, Any]
) -> None:
    """Raise ValueError for arguments that would be silently without effect, or would switch the null off.

    Args:
        pipeline: The guided one.
        guidance: Of each of its networks, by name.
        own_null: Whether the null condition is told by `guide` itself.
        arguments: Of a call of the pipeline, by name, defaults among them.
    """
    for name, (off, instead) in _REPLACED.items():
        if name in arguments and arguments[name] is not None and arguments[name] != off:
            raise ValueError(
                f"{name} is {shown(arguments[name])}, a guidance of the pipeline's own, without effect "
                f"under guide; allowed: {off}, and instead {instead}"
            )
    for name in _SCALES:
        if arguments.get(name) is not None:
            check_number(name, arguments[name], -MAX_SCALE, MAX_SCALE)  # beyond, their own output is infinite
    name = "true_cfg_scale" if "true_cfg_scale" in arguments else "guidance_scale"
    scale = arguments.get(name)
    if own_null or not any(each.needs_null for each in guidance.values()):
        return
    above = 0 if facts_of(getattr(pipeline, next(iter(guidance)))).off_at_0 else 1
    if scale is not None and not scale > above:
        raise ValueError(
            f"{name} is {shown(scale)}, which switches off the null condition that guidance asks for; "
            f"give any above {above} (it has no other effect under guide), or guide(condition=)"
        )
    lacks = all(arguments.get(each) is None for each in ("negative_prompt", "negative_prompt_embeds"))
    if name == "true_cfg_scale" and lacks:
        raise ValueError(
            f"negative_prompt is None, and without one {type(pipeline).__name__} has no null condition, "
            'which guidance asks for; give one (such as ""), or guide(condition=)'
        )
