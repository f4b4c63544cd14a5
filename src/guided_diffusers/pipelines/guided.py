"""The base of guided pipelines: which guidance a call uses, and what its callbacks read and set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance, GuidanceInterval, GuidanceSum
from guided_diffusers.guidance.base import Scale, checked_scale
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.call import Call, check_networks, rescaled
from guided_diffusers.pipelines.safe import SafePipeline

FALLBACK_GUIDANCE_SCALE = 7.5  # Stable Diffusion's, for checkpoints that name none


class GuidedPipeline(SafePipeline):
    """A pipeline whose calls are guided: by `guidance_scale`, `guidance` or the checkpoint's default.

    What a call is made of is its own (`Call`, `Run`), so that threads may share a pipeline. What stands on
    the pipeline is for callbacks: they read and set `_guidance_scale` and `_interrupt`.
    """

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
            return ClassifierFreeGuidance(checked_scale(guidance_scale, "guidance_scale"), guidance_interval)
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
        return {}

    def _call_of(self, guidance: Any, scale: Any, interval: Any, images: int, rescale: float = 0.0) -> Call:
        """Which guidance a call uses; ValueError where it is none, or two were given."""
        if guidance is None:
            guidance = self.call_guidance(scale, interval)
            return Call.of(rescaled(guidance, rescale) if rescale else guidance, images)
        others = {"scale": scale, "interval": interval, "rescale": rescale or None}
        for name, other in others.items():
            inputs.check_one_of("guidance", guidance, f"guidance_{name}", other)
        return Call.of(guidance, images)

    def _begin(self, call: Call, steps: int) -> None:
        """Show a call to its callbacks."""
        self._call, self._guidance_scale = call, call.scale
        self._num_timesteps, self._interrupt = steps, False
