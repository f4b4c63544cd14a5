"""What guided pipelines share: which guidance a call uses, its scale as it stands, its schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from guided_diffusers.core.checks import a_kind_of, as_number, shown
from guided_diffusers.core.prediction import coefficients
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceInterval,
    GuidanceSum,
)
from guided_diffusers.guidance.base import Scale, checked_scale
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.sampling import sampling_loop, set_timesteps
from guided_diffusers.schedulers.adapt import (
    check_supported,
    noise_level,
    prediction_type_of,
    run_timesteps,
)
from guided_diffusers.schedulers.protocol import AnyScheduler

FALLBACK_GUIDANCE_SCALE = 7.5  # Stable Diffusion's, for checkpoints that name none


class GuidedPipeline(SafePipeline):
    """A pipeline whose calls are guided: by `guidance_scale`, `guidance` or the checkpoint's default."""

    _guidance: Guidance = GuidanceSum()
    _guidance_scale: Scale | None = None
    _null_is_off: bool = False
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> Scale | None:
        """Gamma of the call's classifier-free term, read again at each step; None without such a term."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the guidance of the current call, as it stands, asks for the null condition."""
        return self._current_guidance().needs_null

    @property
    def num_timesteps(self) -> int:
        """Calls of the scheduler in the current run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipeline._interrupt = True` in a callback to end the run after the step."""
        return self._interrupt

    def _begin_guidance(
        self,
        guidance: Guidance | None,
        guidance_scale: float | Sequence[float] | None,
        guidance_interval: GuidanceInterval | Sequence[float] | None,
        images: int,
    ) -> None:
        """Settle which guidance this call uses, before anything is computed."""
        inputs.check_one_of("guidance", guidance, "guidance_scale", guidance_scale, required=False)
        inputs.check_one_of("guidance", guidance, "guidance_interval", guidance_interval, required=False)
        if guidance is None:
            guidance = self.call_guidance(guidance_scale, guidance_interval)
        self._settle_guidance(guidance, images)

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
        interval = GuidanceInterval.of(guidance_interval)
        if guidance_scale is not None:
            return ClassifierFreeGuidance(checked_scale(guidance_scale, "guidance_scale"), interval)
        if self.config.default_guidance is None:
            return ClassifierFreeGuidance(FALLBACK_GUIDANCE_SCALE, interval)
        guidance = self.guidance_from_config(self.config.default_guidance)
        if interval is None:
            return guidance
        return GuidanceSum(tuple(replace(term, interval=interval) for term in guidance.terms))

    def guidance_from_config(self, config: Any, **networks: Any) -> Guidance:
        """The guidance that a configuration describes, with the pipeline's own networks.

        Args:
            config: A term's `to_config()` value, or a list of them.
            networks: Others in their place, by the term's argument name (`weak=`).

        Raises:
            ValueError: A term that is unknown, or that needs a network which the pipeline does not have.
        """
        networks = self._guidance_networks() | networks
        _check_networks(config, networks, "give guidance_scale, or load the pipeline with its weak_unet")
        return Guidance.from_config(config, **networks)

    def _settle_guidance(self, guidance: Any, images: int) -> None:
        """Begin a call under this guidance.

        Raises:
            ValueError: It is none, or scales one a sample are not as many as images.
        """
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {a_kind_of(guidance)}; allowed: a guidance term or a sum of terms")
        for term in guidance.terms:
            name = "classifier_scale" if isinstance(term, ClassifierGuidance) else "guidance_scale"
            check_count_of_scales(name, term.scale, images)
        self._guidance, self._guidance_scale = guidance, guidance.gamma
        self._null_is_off = self._interrupt = False

    def _guidance_networks(self) -> dict[str, Any]:
        """The networks of the pipeline's own that its default guidance may need, by the term's argument."""
        return {}

    def _current_guidance(self) -> Guidance:
        """The call's guidance with the scale as it stands: a callback may have set `_guidance_scale`."""
        scale, terms = self._guidance_scale, self._guidance.terms
        if self._null_is_off and self._scale_is_at_most_1():
            return GuidanceSum(tuple(term for term in terms if not term.needs_null))
        if scale is None or scale == self._guidance.gamma:
            return self._guidance
        return GuidanceSum(tuple(t if t.gamma is None else replace(t, scale=scale) for t in terms))

    def _scale_is_at_most_1(self) -> bool:
        """Whether Stable Diffusion would take the scale as it stands for guidance switched off."""
        scale = self._guidance_scale
        return scale is not None and max(scale if isinstance(scale, tuple) else (scale,)) <= 1

    def _check_set_scale(self, images: int) -> None:
        """Raise ValueError where a callback has set `_guidance_scale` to what is no scale."""
        if self._guidance_scale is not None:
            self._guidance_scale = checked_scale(self._guidance_scale, "_guidance_scale")
        check_count_of_scales("_guidance_scale", self._guidance_scale, images)

    def _check_scale_is_taken(self) -> None:
        """Raise ValueError where a callback has set `_guidance_scale`, and no term has a gamma."""
        off = self._null_is_off and self._scale_is_at_most_1()
        if not off and all(term.gamma is None for term in self._guidance.terms):
            names = " + ".join(type(term).__name__ for term in self._guidance.terms)
            raise ValueError(
                f"_guidance_scale was set to {self._guidance_scale}; allowed: leaving it, because the "
                f"guidance of this call ({names or 'none'}) has no gamma"
            )

    def _sample(
        self,
        run: Any,
        scheduler: AnyScheduler,
        noise: Tensor,
        callback: tuple[Callable | None, Sequence[str]],
        **arguments: Any,
    ) -> Tensor:
        """The sampling loop with a progress bar and the user's callback, `(function, tensor names)`."""
        function, names = callback
        with self.progress_bar(total=self._num_timesteps) as progress:

            def after_step(index: int, timestep: Tensor, sample: Tensor) -> Tensor:
                progress.update()
                return sample if function is None else run.call_back(function, names, index, timestep, sample)

            return sampling_loop(run, scheduler, noise, callback=after_step, **arguments)

    def _begin_schedule(
        self, steps: int, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
    ) -> str:
        """Set the timesteps; refuse what cannot work, before any compute; return the prediction type."""
        check_supported(self.scheduler)
        set_timesteps(self.scheduler, steps, timesteps, sigmas)
        self._num_timesteps = len(run_timesteps(self.scheduler))
        prediction_type = prediction_type_of(self.scheduler)
        coefficients(noise_level(self.scheduler, self.scheduler.timesteps[0]), prediction_type)
        return prediction_type


def check_count_of_scales(name: str, scale: Scale | None, images: int) -> None:
    """Raise ValueError where scales one an image are not as many as images."""
    if isinstance(scale, tuple) and len(scale) != images:
        raise ValueError(f"{name} has {len(scale)} values for {images} images; give one or as many")


def takes_eta(scheduler: AnyScheduler) -> bool:
    """Whether a scheduler's step has DDIM's eta."""
    return "eta" in inspect.signature(scheduler.step).parameters


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
        _check_networks(guidance, networks, "give weak_unet, or another default_guidance, such as a scale")
        guidance = Guidance.from_config(guidance, **networks)
    return guidance.to_config()


def _check_networks(config: Any, networks: Mapping[str, Any], remedy: str) -> None:
    """Raise ValueError, and say what to do, where a configuration needs a weak network that is not there."""
    for term in [config] if isinstance(config, Mapping) else config:
        if isinstance(term, Mapping) and term.get("term") == "AutoGuidance" and "weak" not in networks:
            raise ValueError(f"AutoGuidance needs a weak network, and the pipeline has none: {remedy}")
