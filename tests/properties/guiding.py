"""Calls whose input is checked: guidance terms, intervals, schedulers, the sampling loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import diffusers
import torch
from hypothesis import strategies as st
from properties.arithmetic import levels
from properties.harness import Target, finite, of_shape_of
from properties.strategies import BATCH, SHAPE, generators, numbers, tensors

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler, NoiseLevel, noise_level, sampling_loop
from guided_diffusers.core.betas import BETA_SCHEDULES
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGZeroStar,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicThresholding,
    Guidance,
    GuidanceInterval,
    HistoryGuidance,
    LossGuidance,
    NormCap,
    ProjectedGuidance,
    RescaledGuidance,
    SlidingWindowGuidance,
    TangentialGuidance,
    TimestepGuidance,
)
from guided_diffusers.schedulers import SUPPORTED_SCHEDULERS, prediction_type_of
from guided_diffusers.schedulers.timesteps import set_timesteps
from guided_diffusers.schedulers.variance_preserving import TIMESTEP_SPACINGS

SCALES = numbers(-2, 10) | st.lists(st.floats(-2, 10), min_size=BATCH, max_size=BATCH)
INTERVALS = (
    st.none()
    | st.tuples(st.floats(0, 1), st.floats(1.1, 50))
    | st.just((None, 3.0))
    | st.just([0.5, None])
    | st.builds(GuidanceInterval, st.floats(0, 1), st.just(2.0))
)
COMMON = {"scale": SCALES, "interval": INTERVALS, "sample": tensors(*SHAPE), "level": levels()}


def denoiser(sample: Any, level: NoiseLevel, condition: Any = None) -> Any:
    """Half the sample, or less under the null condition."""
    return sample * (0.3 if condition is None else 0.5)


def log_prob(sample: Any, level: NoiseLevel, condition: Any) -> Any:
    """A standard normal's, up to a constant."""
    return -sample.square().flatten(1).sum(1) / 2


def loss(images: Any) -> Any:
    """Minus the same of clean images."""
    return images.square().flatten(1).sum(1) / 2


def guided(term: type[Guidance], sample: Any, level: Any, **options: Any) -> Any:
    """A guided prediction, and the term through its configuration and back."""
    guidance = term(**options)
    networks = {name: options.get(name) for name in ("weak", "log_prob", "loss", "decode")}
    assert Guidance.from_config(guidance.to_config(), **networks) == guidance
    return guidance(denoiser)(sample, level, {"a": 1})


def of(term: type[Guidance], **options: Any) -> Target:
    """The target of a term."""
    declared = {field.name for field in fields(term)} | {"sample", "level"}
    common = {name: COMMON[name] for name in COMMON if name in declared}
    return Target(
        call=lambda **given: guided(term, **given),
        arguments={**common, **options},
        right=of_shape_of("sample"),
        called={"weak": "denoiser", "log_prob": "log_prob"},
        keep=("sample", "level"),
    )


def scheduler_of(name: str, **config: Any) -> Any:
    """A scheduler by name, ours or diffusers'."""
    home = diffusers if hasattr(diffusers, name) else __import__("guided_diffusers")
    return getattr(home, name)(**config)


NAMES = [*SUPPORTED_SCHEDULERS, "GuidedDDIMScheduler", "GuidedDDPMScheduler"]


def listed(name: str, num_inference_steps: Any = None, timesteps: Any = None, sigmas: Any = None) -> Any:
    """The noise levels of a run."""
    scheduler = scheduler_of(name)
    set_timesteps(scheduler, num_inference_steps, timesteps, sigmas)
    level = noise_level(scheduler, scheduler.timesteps[0])
    return [level.alpha, level.sigma, scheduler.timesteps]


def taken(name: str) -> Any:
    """Right arguments of `listed`, by what the scheduler takes."""
    from guided_diffusers.schedulers.timesteps import takes

    scheduler = scheduler_of(name)
    choices = [st.fixed_dictionaries({"name": st.just(name), "num_inference_steps": st.integers(4, 40)})]
    if takes(scheduler, "timesteps"):
        times = st.lists(st.integers(1, 990), min_size=2, max_size=8, unique=True)
        times = times.map(lambda values: sorted(values, reverse=True))
        choices.append(st.fixed_dictionaries({"name": st.just(name), "timesteps": times}))
    return st.one_of(choices)


def ours(cls: type, steps: Any, timesteps: Any = None, **config: Any) -> Any:
    """A scheduler's own constructor, timesteps, and one step."""
    scheduler = cls(**config)
    scheduler.set_timesteps(steps) if timesteps is None else scheduler.set_timesteps(timesteps=timesteps)
    sample = torch.ones(1, 1, 2, 2)
    return scheduler.step(sample / 2, scheduler.timesteps[0], sample, generator=torch.Generator()).prev_sample


CONFIG = {
    "steps": st.integers(1, 30),
    "num_train_timesteps": st.integers(30, 1000),
    "beta_start": st.floats(1e-5, 1e-3),
    "beta_end": st.floats(0.01, 0.03),
    "beta_schedule": st.sampled_from([name for name in BETA_SCHEDULES if name != "laplace"]),
    "trained_betas": st.none() | st.just([0.01] * 40),
    "prediction_type": st.sampled_from(["epsilon", "sample", "v_prediction", "flow_prediction"]),
    "timestep_spacing": st.sampled_from(TIMESTEP_SPACINGS),
    "steps_offset": st.just(0),
    "clip_sample": st.booleans(),
    "clip_sample_range": st.floats(0.5, 3),
    "thresholding": st.booleans(),
    "dynamic_thresholding_ratio": st.floats(0.5, 1),
    "sample_max_value": st.floats(1, 3),
}


def looped(name: str, **arguments: Any) -> Any:
    """The sampling loop under guidance."""
    scheduler = scheduler_of(name)
    guidance = ClassifierFreeGuidance(2.0)
    assert prediction_type_of(scheduler)
    return sampling_loop(scheduler=scheduler, denoiser=guidance(denoiser), **arguments)


def _from_config(result: Guidance, given: Mapping[str, Any]) -> None:
    assert isinstance(result, Guidance)


TARGETS: dict[str, Target] = {
    "ClassifierFreeGuidance": of(ClassifierFreeGuidance),
    "AutoGuidance": of(AutoGuidance, weak=st.just(denoiser), null=st.booleans()),
    "ClassifierGuidance": of(
        ClassifierGuidance,
        log_prob=st.just(log_prob),
        form=st.just("score"),
        through=st.sampled_from(["classifier", "denoised"]),
        at=st.just("sample"),
        max_gradient_norm=st.none() | numbers(0.1, 10),
    ),
    "LossGuidance": of(
        LossGuidance,
        loss=st.just(loss),
        decode=st.none() | st.just(torch.tanh),
        through=st.sampled_from(["x0", "denoised"]),
        recurrence=st.integers(1, 3),
        max_norm=st.none() | numbers(0.1, 10),
    ),
    "RescaledGuidance": of(
        RescaledGuidance, rescale=numbers(0, 1), prediction_type=st.sampled_from(["epsilon", "v_prediction"])
    ),
    "TangentialGuidance": of(TangentialGuidance, prediction_type=st.sampled_from(["sample", "v_prediction"])),
    "ProjectedGuidance": of(
        ProjectedGuidance,
        parallel=numbers(0, 1),
        momentum=st.floats(-0.9, 0.9),
        norm_threshold=st.none() | numbers(0.1, 10),
    ),
    "TimestepGuidance": of(
        TimestepGuidance, noise=numbers(0.01, 1), exponent=numbers(0, 2), seed=st.integers(0, 9)
    ),
    "SlidingWindowGuidance": of(
        SlidingWindowGuidance,
        size=st.floats(0.75, 0.9),
        windows=st.integers(2, 3),
        masked=st.booleans(),
        multiple=st.just(1),
    ),
    "HistoryGuidance": of(
        HistoryGuidance,
        rate=numbers(0.1, 1),
        parallel=numbers(0, 1),
        cutoff=st.none() | numbers(0, 1),
        t_min=numbers(0, 0.4),
        t_max=numbers(0.5, 1),
    ),
    "NormCap": of(
        NormCap, maximum=numbers(0.1, 2), prediction_type=st.sampled_from(["sample", "v_prediction"])
    ),
    "DynamicThresholding": of(
        DynamicThresholding, quantile=numbers(0.5, 1), maximum=st.none() | numbers(1, 3)
    ),
    "CFGZeroStar": of(CFGZeroStar, zero_init_steps=st.integers(0, 3)),
    "GuidanceInterval": Target(
        call=lambda low, high, level: GuidanceInterval(low, high).mask(level),
        arguments={"low": numbers(0, 1), "high": numbers(2, 30) | st.just(float("inf")), "level": levels()},
        called={"low": "interval", "high": "interval"},
        keep=("level",),
    ),
    "GuidanceInterval.of": Target(
        call=GuidanceInterval.of, arguments={"value": INTERVALS}, called={"value": "interval"}
    ),
    "Guidance.from_config": Target(
        call=lambda config, weak: Guidance.from_config(config, weak=weak),
        arguments={
            "config": st.just({"term": "AutoGuidance", "scale": 2.0})
            | st.just([{"term": "ClassifierFreeGuidance", "scale": 2.0}] * 2),
            "weak": st.just(denoiser),
        },
        right=_from_config,
        called={"config": "term"},
    ),
    "a term from its configuration": Target(
        call=lambda **entry: Guidance.from_config([entry]),
        arguments={
            "term": st.sampled_from(["ClassifierFreeGuidance", "CFGPlusPlus", "RescaledGuidance"]),
            "scale": SCALES,
            "interval": INTERVALS,
        },
        right=_from_config,
    ),
    "set_timesteps": Target(
        call=listed,
        arguments=st.sampled_from(NAMES).flatmap(taken),
        right=finite,
        called={"timesteps": "num_inference_steps"},  # without the one, the other is asked for
        keep=("name",),
    ),
    "GuidedDDPMScheduler": Target(
        call=lambda **given: ours(GuidedDDPMScheduler, **given),
        arguments={
            **CONFIG,
            "variance_type": st.sampled_from(["fixed_small", "fixed_small_log", "fixed_large"]),
        },
        right=finite,
        called=dict.fromkeys(("steps", "num_train_timesteps", "trained_betas"), "num_inference_steps"),
    ),
    "GuidedDDIMScheduler": Target(
        call=lambda **given: ours(GuidedDDIMScheduler, **given),
        arguments={**CONFIG, "set_alpha_to_one": st.booleans()},
        right=finite,
        called=dict.fromkeys(("steps", "num_train_timesteps", "trained_betas"), "num_inference_steps"),
    ),
    "GuidedDDIMScheduler.set_timesteps": Target(
        call=lambda timesteps: ours(GuidedDDIMScheduler, None, timesteps),
        arguments={
            "timesteps": st.just([900, 40, 3]) | st.just(torch.tensor([999, 0])) | st.just(range(9, 3, -1))
        },
        right=finite,
    ),
    "noise_level": Target(
        call=lambda name, timestep: noise_level(_ready(name), timestep).sigma,
        arguments={
            "name": st.sampled_from(["DDPMScheduler", "GuidedDDPMScheduler", "GuidedDDIMScheduler"]),
            "timestep": st.sampled_from([750, 500, 0]) | st.just(torch.tensor([750, 250])),
        },
        right=finite,
        keep=("name",),
    ),
    "sampling_loop": Target(
        call=looped,
        arguments={
            "name": st.sampled_from(NAMES),
            "noise": tensors(*SHAPE),
            "num_inference_steps": st.integers(4, 6),
            "generator": generators(BATCH),
            "callback": st.none() | st.just(lambda index, timestep, sample: sample),
            "step_kwargs": st.just({}) | st.none(),
        },
        right=finite,
        called={"noise": "generator"},
        keep=("name",),
    ),
}


def _ready(name: str) -> Any:
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(4)
    return scheduler
