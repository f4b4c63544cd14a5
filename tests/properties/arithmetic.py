"""Calls whose input is checked: noise levels, prediction types, randomness, conditions, losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from properties.harness import Target, finite
from properties.strategies import BATCH, SHAPE, TEXTS, integers, numbers, tensors, uniform
from tiny import tiny_tokenizer

from guided_diffusers import Condition, ModelDenoiser, NoiseLevel, from_denoised, to_denoised
from guided_diffusers.core.condition import tokenize, words_beyond
from guided_diffusers.core.denoiser import DynamicThreshold
from guided_diffusers.core.prediction import PREDICTION_TYPES, coefficients
from guided_diffusers.core.process import Flow
from guided_diffusers.losses import (
    log_normal_levels,
    min_snr_weight,
    target,
)
from guided_diffusers.training.tasks.importance import ImportanceSampler

TYPES = st.sampled_from(PREDICTION_TYPES)
PLAIN_TYPES = st.sampled_from(PREDICTION_TYPES[:4])
SAMPLES = tensors(*SHAPE, dtypes=(torch.float32, torch.float64, torch.float16))


def levels(least: float = 1e-3) -> SearchStrategy[NoiseLevel]:
    """Variance-preserving, exploding and flow-matching levels with some signal, one or one a sample."""

    def level(kind: str, sigma: float, batch: bool) -> NoiseLevel:
        value = torch.full((BATCH,), sigma, dtype=torch.float64) if batch else torch.tensor(sigma).double()
        if kind == "exploding":
            scale = (1 + value**2).rsqrt()
            return NoiseLevel(alpha=torch.ones_like(value), sigma=value, timestep=1, input_scale=scale)
        alpha = 1 - value if kind == "flow" else (1 - value**2).sqrt()
        return NoiseLevel(alpha=alpha, sigma=value, timestep=torch.tensor(3))

    kinds = st.sampled_from(["preserving", "exploding", "flow"])
    return st.builds(level, kinds, st.floats(least, 0.999), st.booleans())


def _level(result: NoiseLevel, given: Mapping[str, Any]) -> None:
    assert result.alpha.ndim < 2 and result.alpha.dtype == torch.float64
    assert ((result.alpha >= 0) & (result.alpha <= 1 + 1e-6) & (result.sigma >= 0)).all()


def _condition(positive: Any, negative: Any) -> Any:
    made = Condition(positive, negative)
    return made.positive, made.null if made.negative is not None else None


def _ones(sample: Any, timestep: Any, **condition: Any) -> Any:
    return torch.ones_like(sample)


def _denoised(model: Any, prediction_type: Any, clip: Any, sample: Any, level: Any, condition: Any) -> Any:
    return ModelDenoiser(model, prediction_type, clip)(sample, level, condition).x0


MAPPINGS = st.sampled_from([{}, {"class_labels": torch.zeros(BATCH, dtype=torch.int64)}])
INDICES = st.lists(st.integers(-5, 2**40), min_size=1, max_size=3)
SIDES = st.lists(st.integers(0, 4), max_size=3)

TARGETS: dict[str, Target] = {
    "NoiseLevel": Target(
        call=NoiseLevel,
        arguments={
            "alpha": numbers(0, 1) | uniform(BATCH),
            "sigma": numbers(0, 100) | uniform(BATCH),
            "timestep": st.none() | numbers(0, 1000) | integers(1000, BATCH),
            "input_scale": numbers(0.1, 1),
        },
        right=_level,
    ),
    "coefficients": Target(
        call=coefficients,
        arguments={"level": levels(), "prediction_type": TYPES},
        right=finite,
        keep=("level",),
    ),
    "to_denoised": Target(
        call=to_denoised,
        arguments={"output": SAMPLES, "sample": SAMPLES, "level": levels(), "prediction_type": TYPES},
        keep=("output", "sample", "level"),
    ),
    "from_denoised": Target(
        call=from_denoised,
        arguments={"x0": SAMPLES, "sample": SAMPLES, "level": levels(), "prediction_type": TYPES},
        keep=("x0", "sample", "level"),
    ),
    "ModelDenoiser": Target(
        call=_denoised,
        arguments={
            "model": st.just(_ones),
            "prediction_type": PLAIN_TYPES,
            "clip": st.none() | numbers(0.1, 3) | st.just(torch.tanh) | st.just(DynamicThreshold()),
            "sample": SAMPLES,
            "level": levels(),
            "condition": st.none() | MAPPINGS,
        },
        called={"model": "network"},
        keep=("sample", "level"),
    ),
    "DynamicThreshold": Target(
        call=lambda quantile, maximum: DynamicThreshold(quantile, maximum)(torch.linspace(-3, 3, 8)[None]),
        arguments={"quantile": st.floats(0.01, 1), "maximum": numbers(1, 50)},
        right=finite,
    ),
    "Condition": Target(call=_condition, arguments={"positive": MAPPINGS, "negative": st.none() | MAPPINGS}),
    "tokenize": Target(
        call=lambda prompts, max_length: tokenize(tiny_tokenizer(), prompts, max_length),
        arguments={
            "prompts": st.lists(TEXTS, min_size=1, max_size=3),
            "max_length": st.none() | st.integers(2, 20),
        },
        right=finite,
    ),
    "words_beyond": Target(
        call=lambda prompt, max_length: words_beyond(tiny_tokenizer(), prompt, max_length),
        arguments={"prompt": TEXTS, "max_length": st.none() | st.integers(2, 20)},
    ),
    "target": Target(
        call=target,
        arguments={
            "x0": tensors(*SHAPE),
            "noise": tensors(*SHAPE),
            "level": levels(),
            "prediction_type": PLAIN_TYPES,
        },
        called={"prediction_type": "level"},
        keep=("x0", "noise", "level"),
    ),
    "distributions of levels": Target(
        call=lambda mean, std, gamma: (
            log_normal_levels(Flow(num_train_timesteps=1000), mean, std)(torch.rand(3)).sigma,
            min_snr_weight(gamma),
        ),
        arguments={"mean": numbers(-2, 2), "std": st.floats(0.1, 2), "gamma": numbers(1, 10)},
    ),
    "ImportanceSampler": Target(
        call=lambda **given: ImportanceSampler(**given).draw(torch.rand(3)),
        arguments={
            "timesteps": st.integers(1, 50),
            "history": st.integers(1, 10),
            "uniform_share": st.floats(0.001, 1),
        },
        right=finite,
    ),
}
