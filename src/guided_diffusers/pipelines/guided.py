"""The guidance of a call: as its arguments ask for it, and as its callbacks read it and leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from guided_diffusers.core.checks import a_kind_of
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceInterval,
    GuidanceSum,
    RescaledGuidance,
)
from guided_diffusers.guidance.base import Scale, checked_scale
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.default_guidance import check_networks

FALLBACK_GUIDANCE_SCALE = 7.5  # Stable Diffusion's, for checkpoints that name none


@dataclass(frozen=True, kw_only=True)
class Call:
    """Which guidance a call uses.

    Attributes:
        guidance: The terms that the call began with.
        began: gamma of that guidance; None without one.
        scale: gamma as it stands: a callback may have set `pipeline._guidance_scale`.
        with_null: Whether that guidance asks for the null.
        null_is_off: A callback has taken the null's embeddings away, as diffusers' own do to end guidance.
    """

    guidance: Guidance = GuidanceSum()
    began: Scale | None = None
    scale: Scale | None = None
    with_null: bool = False
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
        gamma, needs_null = guidance.gamma, guidance.needs_null
        for term in guidance.terms:
            if isinstance(getattr(term, "scale", None), tuple):
                name = "classifier_scale" if isinstance(term, ClassifierGuidance) else "guidance_scale"
                check_count_of_scales(name, term.scale, images)
        return cls(guidance=guidance, began=gamma, scale=gamma, with_null=needs_null)

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
    others = GuidanceSum(tuple(term for term in terms if term is not free[0]))
    return replace(call, guidance=others, with_null=others.needs_null)


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


class GuidedMixin:
    """Of pipelines whose calls are guided: by `guidance_scale`, `guidance` or the checkpoint's default.

    What a call is made of is its own (`Call`, `Run`), so that threads may share a pipeline. What stands on
    the pipeline is for callbacks: they read and set `_guidance_scale` and `_interrupt`.
    """

    config: Any
    _call: Call = Call()
    _guidance_scale: Scale | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> Scale | None:
        """Gamma of the call's classifier-free term as it stands; None without such a term."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the guidance of the current call, as it stands, asks for the null condition."""
        return replace(self._call, scale=self._guidance_scale).current.needs_null

    @property
    def num_timesteps(self) -> int:
        """Steps of the last run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipeline._interrupt = True` in a callback to end the run after the step."""
        return self._interrupt

    def call_guidance(
        self,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_interval: GuidanceInterval | Sequence[float] | None = None,
    ) -> Guidance:
        """The guidance of a call with these arguments: its `to_config()` is what a record of the call holds.

        Args:
            guidance_scale: Of classifier-free guidance; None for the checkpoint's default.
            guidance_interval: Where all its terms are active; None for where they say.

        Raises:
            ValueError: A scale or an interval that is none, or a default that needs a network of others.
        """
        if guidance_scale is not None:
            try:
                return ClassifierFreeGuidance(guidance_scale, guidance_interval)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                checked_scale(guidance_scale, "guidance_scale")  # where it is that, by this name
                raise
        if self.config.default_guidance is None:
            return ClassifierFreeGuidance(FALLBACK_GUIDANCE_SCALE, guidance_interval)
        guidance = self.guidance_from_config(self.config.default_guidance)
        if guidance_interval is None:
            return guidance
        return GuidanceSum(tuple(replace(term, interval=guidance_interval) for term in guidance.terms))

    def guidance_from_config(self, config: Any, **networks: Any) -> Guidance:
        """The guidance that a configuration describes, with the pipeline's own networks.

        Args:
            config: A term's `to_config()` value, or a list of them.
            networks: Others in their place, by the term's argument name (`weak=`).

        Raises:
            ValueError: A term that is unknown, or that needs a network which the pipeline does not have.
        """
        networks = self._guidance_networks() | networks
        check_networks(config, networks, "give guidance_scale, or load the pipeline with its weak_unet")
        return Guidance.from_config(config, **networks)

    def _guidance_networks(self) -> dict[str, Any]:
        """The networks of the pipeline's own that its default guidance may need, by the term's argument."""
        weak = getattr(self, "weak_denoiser", None)
        return {} if weak is None else {"weak": weak}

    def _call_of(self, guidance: Any, scale: Any, interval: Any, images: int, rescale: float = 0.0) -> Call:
        """Which guidance a call uses; ValueError where it is none, or two were given."""
        if guidance is None:
            guidance = self.call_guidance(scale, interval)
            return Call.of(rescaled(guidance, rescale) if rescale else guidance, images)
        others = {"scale": scale, "interval": interval, "rescale": rescale or None}
        for name, other in others.items():
            inputs.check_one_of("guidance", guidance, f"guidance_{name}", other)
        return Call.of(guidance, images)
