"""The guidance of one call of a pipeline: as its arguments ask for it, and as its callbacks leave it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from guided_diffusers.core.checks import a_kind_of, as_number, shown
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceSum,
    RescaledGuidance,
)
from guided_diffusers.guidance.base import Scale, checked_scale


@dataclass(frozen=True, kw_only=True)
class Call:
    """Which guidance a call uses.

    Attributes:
        guidance: The terms that the call began with.
        began: gamma of that guidance; None without one.
        scale: gamma as it stands: a callback may have set `pipeline._guidance_scale`.
        null_is_off: A callback has taken the null's embeddings away, as diffusers' own do to end guidance.
    """

    guidance: Guidance = GuidanceSum()
    began: Scale | None = None
    scale: Scale | None = None
    null_is_off: bool = False

    @classmethod
    def of(cls, guidance: Any, images: int) -> Call:
        """The call of a guidance.

        Raises:
            ValueError: It is none, or scales one a sample are not as many as images.
        """
        if not isinstance(guidance, Guidance):
            kind = a_kind_of(guidance)
            raise ValueError(f"guidance is {kind}; allowed: a guidance term or a sum of terms")
        for term in guidance.terms:
            if isinstance(getattr(term, "scale", None), tuple):
                name = "classifier_scale" if isinstance(term, ClassifierGuidance) else "guidance_scale"
                check_count_of_scales(name, term.scale, images)
        gamma = guidance.gamma
        return cls(guidance=guidance, began=gamma, scale=gamma)

    @cached_property
    def current(self) -> Guidance:
        """The guidance with the scale as it stands."""
        if self.null_is_off and self.is_at_most_1:
            return GuidanceSum(tuple(term for term in self.guidance.terms if not term.needs_null))
        if self.scale is None or self.scale == self.began:
            return self.guidance
        terms = (t if t.gamma is None else replace(t, scale=self.scale) for t in self.guidance.terms)
        return GuidanceSum(tuple(terms))

    @property
    def is_at_most_1(self) -> bool:
        """Whether Stable Diffusion would take the scale as it stands for guidance switched off."""
        scale = self.scale
        return scale is not None and max(scale if isinstance(scale, tuple) else (scale,)) <= 1

    def check_scale_is_taken(self) -> None:
        """Raise ValueError where a callback has set `_guidance_scale`, and no term has a gamma."""
        off = self.null_is_off and self.is_at_most_1
        if not off and all(term.gamma is None for term in self.guidance.terms):
            names = " + ".join(type(term).__name__ for term in self.guidance.terms)
            raise ValueError(
                f"_guidance_scale was set to {self.scale}; allowed: leaving it, because the guidance of this "
                f"call ({names or 'none'}) has no gamma"
            )


def told_scale(call: Call, width: int) -> Call:
    """The call of a distilled network, which is told the scale: the term that has it is left out.

    Raises:
        ValueError: A guidance that has not one such term, in force at all levels.
    """
    terms = call.guidance.terms
    free = [term for term in terms if isinstance(term, ClassifierFreeGuidance)]
    if len(free) != 1 or type(free[0]) is not ClassifierFreeGuidance or free[0].interval is not None:
        names = " + ".join(type(term).__name__ for term in terms) or "none"
        raise ValueError(
            f"guidance is {names}{' in an interval' * any(term.interval for term in free)}; allowed: "
            "guidance_scale alone, beside terms of other kinds, because the unet (time_cond_proj_dim "
            f"{width}) is told the scale, and not guided by it"
        )
    return replace(call, guidance=GuidanceSum(tuple(term for term in terms if term is not free[0])))


def rescaled(guidance: Guidance, rescale: float) -> Guidance:
    """The guidance of a call, which is classifier-free alone, rescaled.

    Raises:
        ValueError: It is the checkpoint's default, and another.
    """
    terms = guidance.terms
    if [type(term) for term in terms] != [ClassifierFreeGuidance]:
        names = " + ".join(type(term).__name__ for term in terms)
        raise ValueError(
            f"guidance_rescale is {rescale}, and the checkpoint's default guidance is {names}; allowed: "
            "0, or guidance_scale beside it (RescaledGuidance)"
        )
    return RescaledGuidance(terms[0].scale, terms[0].interval, rescale=rescale)


def check_count_of_scales(name: str, scale: Scale | None, images: int) -> None:
    """Raise ValueError where scales one an image are not as many as images."""
    if isinstance(scale, tuple) and len(scale) != images:
        raise ValueError(f"{name} has {len(scale)} values for {images} images; give one or as many")


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


def check_networks(config: Any, networks: Mapping[str, Any], remedy: str) -> None:
    """Raise ValueError, and say what to do, where a configuration needs a weak network that is not there."""
    for term in [config] if isinstance(config, Mapping) else config:
        if isinstance(term, Mapping) and term.get("term") == "AutoGuidance" and "weak" not in networks:
            raise ValueError(f"AutoGuidance needs a weak network, and the pipeline has none: {remedy}")
