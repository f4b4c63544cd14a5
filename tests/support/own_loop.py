"""Our own sampling loop on the network of a pipeline of diffusers: what `guide` in that pipeline must equal.

A plain call of the pipeline is watched: what its network is told at the first step, and the first sample.
From there on nothing of the pipeline, nor of `guide`, is used: `sampling_loop` calls the network by
`ModelDenoiser`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import Any

import torch
from stock_families import Family

from guided_diffusers import Condition, ModelDenoiser, sampling_loop
from guided_diffusers.core.networks import WITHOUT_A_BATCH
from guided_diffusers.core.prediction import from_denoised, to_denoised
from guided_diffusers.guidance import ClassifierFreeGuidance
from guided_diffusers.schedulers.adapt import initial_scale, prediction_type_of, step_names

CONDITION_FIRST = ("DiTTransformer2DModel", "ZImageTransformer2DModel")
_TOLD_APART = ("sample", "hidden_states", "x", "timestep", "t", "return_dict")


class AsQwenDoes(ClassifierFreeGuidance):
    """Qwen-Image's own guidance: each token of the velocity as long as the conditional one."""

    def shift(self, step, own, answers):
        plain = own.x0 + super().shift(step, own, answers)
        conditional, guided = (
            from_denoised(x0, step.sample, step.level, step.prediction_type) for x0 in (own.x0, plain)
        )
        guided = guided * conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return to_denoised(guided, step.sample, step.level, step.prediction_type) - own.x0


@contextmanager
def listening(scheduler: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The sample before and after each step of a scheduler, whatever object its step is called on."""
    cls, steps = type(scheduler), []
    plain, names = cls.step, step_names(scheduler)

    @wraps(plain)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(plain).bind(self, *args, **kwargs)
        stepped = plain(self, *args, **kwargs)
        steps.append((call.arguments[names[2]].clone(), stepped[0].clone()))
        return stepped

    cls.step = step
    try:
        yield steps
    finally:
        cls.step = plain


def drawn(case: Family, pipeline: Any, steps: int) -> torch.Tensor:
    """The last sample of a call, whatever the pipeline makes of it."""
    with listening(pipeline.scheduler) as stepped:
        case.call(pipeline, steps=steps)
    last = stepped[-1][1]
    return last.chunk(2)[0] if type(pipeline).__name__ == "DiTPipeline" else last


def watched(case: Family, pipeline: Any, steps: int) -> tuple[list[tuple], torch.Tensor, dict[str, Any]]:
    """The network's calls at the first step, the first sample, and the tables that the scheduler had then."""
    told: list[tuple] = []
    tables: dict[str, Any] = {}

    def record(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not tables:
            tables.update(deepcopy(vars(pipeline.scheduler)))
        told.append((args, dict(kwargs), len(stepped)))

    handle = getattr(pipeline, case.network).register_forward_pre_hook(record, with_kwargs=True)
    try:
        with listening(pipeline.scheduler) as stepped:
            case.call(pipeline, steps=steps)
    finally:
        handle.remove()
    return [(args, kwargs) for args, kwargs, at in told if at == 0], stepped[0][0], tables


def _half(value: Any, half: int, name: str = "") -> Any:
    """One half of whatever has the batch of two first; a list of two is one entry a sample."""
    if isinstance(value, torch.Tensor) and value.ndim and name not in WITHOUT_A_BATCH:
        return value.chunk(2)[half] if len(value) % 2 == 0 else value
    if isinstance(value, dict):
        return {key: _half(each, half, key) for key, each in value.items()}
    if isinstance(value, list) and name == "cap_feats":
        return [value[half]]
    return [_half(each, half) for each in value] if isinstance(value, list) else value


def _frozen(scheduler: Any, tables: dict[str, Any]) -> Any:
    """A scheduler whose timesteps are those that the pipeline set."""
    cls = type(scheduler)

    def set_timesteps(self: Any, num_inference_steps: int | None = None, mu: float | None = None) -> None:
        vars(self).update(deepcopy(tables))
        if hasattr(self, "_step_index"):
            self._step_index = None

    frozen = deepcopy(scheduler)
    frozen.__class__ = type(cls.__name__, (cls,), {"set_timesteps": set_timesteps})
    return frozen


def _function(pipeline: Any, network: Any) -> Callable[..., Any]:
    """Networks that `ModelDenoiser` does not know, as functions of its kind."""
    if getattr(pipeline, "transformer_2", None) is not None:
        boundary = pipeline.config.boundary_ratio * 1000
        return lambda x, t, **told: (network if t >= boundary else pipeline.transformer_2)(
            hidden_states=x, timestep=t.expand(len(x)), **told
        )[0]
    match type(network).__name__:
        case "ZImageTransformer2DModel":
            return lambda x, t, **told: (
                -torch.stack(
                    network(list(x.unsqueeze(2)), ((1000 - t) / 1000).expand(len(x)), **told)[0]
                ).squeeze(2)
            )
        case "Flux2Transformer2DModel":
            return lambda x, t, **told: network(x, timestep=(t / 1000).expand(len(x)), **told)[0]
        case "StableAudioDiTModel":
            return lambda x, t, **told: network(x, t[None], **told)[0]
    return network


def by_our_loop(
    case: Family, pipeline: Any, guidance: Any, steps: int, null: dict[str, Any] | None = None
) -> torch.Tensor:
    """What `sampling_loop` draws under guidance with the network, the noise and the levels of a pipeline."""
    network = getattr(pipeline, case.network)
    calls, sample, tables = watched(case, pipeline, steps)
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    named = [{**dict(zip(names, args, strict=False)), **kwargs} for args, kwargs in calls]
    if null is not None:
        named = [named[0], {**named[0], **null}]
    lists = "cap_feats" in named[0] or "image_embeds" in (named[0].get("added_cond_kwargs") or {})
    joins = len(named) == 1 and not lists  # what is no tensor cannot be one batch
    if len(named) == 1:
        own = int(type(network).__name__ not in CONDITION_FIRST)
        named = [{key: _half(value, half, key) for key, value in named[0].items()} for half in (own, 1 - own)]
    positive, negative = ({k: v for k, v in each.items() if k not in _TOLD_APART} for each in named)
    if type(network).__name__ == "DiTTransformer2DModel":
        sample = sample.chunk(2)[0]
    scheduler = _frozen(pipeline.scheduler, tables)
    denoiser = ModelDenoiser(_function(pipeline, network), prediction_type_of(scheduler))
    vars(scheduler).update(deepcopy(tables))
    noise = sample / float(torch.as_tensor(initial_scale(scheduler)))
    generator = torch.Generator().manual_seed(0)
    mu = 0.5 if pipeline.scheduler.config.get("use_dynamic_shifting") else None
    guided, condition = guidance(denoiser, sequential=not joins), Condition(positive, negative)
    return sampling_loop(guided, scheduler, noise, condition, steps, generator=generator, mu=mu)
