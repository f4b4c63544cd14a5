"""Denoisers: what every algorithm of this package works on.

A denoiser is any callable `(sample, level, condition) -> x_0`, the estimate E[x_0 | x_t, condition], of the
sample's shape. Plain functions work. `ModelDenoiser` makes one of a network and its prediction type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import repeat
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from guided_diffusers.core.checks import a_kind_of, shown
from guided_diffusers.core.declared import Above, AtLeast, Within, read
from guided_diffusers.core.networks import WITHOUT_A_BATCH, Network
from guided_diffusers.core.noise import NoiseLevel, broadcast, factor
from guided_diffusers.core.prediction import PREDICTION_TYPES, at_least_float32, denoised_of

_MODEL = Annotated[Callable[..., Any], "a network, or a function (sample, timestep, **condition)"]
_CLIP = Annotated[Annotated[float, Above(0, finite=False)] | None, "None, a number above 0, or a function"]
_MAPPING = (dict, Mapping)  # to ask for a dict first is quicker
_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Denoised(NamedTuple):
    """A denoiser's answer.

    Attributes:
        x0: The estimate of x_0, of the sample's shape, float32 (float64 where the sample is).
        extra: Learned-variance channels, of the sample's shape: they ride along and are never guided.
    """

    x0: Tensor
    extra: Tensor | None = None


class Denoiser(Protocol):
    """Anything that estimates x_0 from x_t."""

    def __call__(self, sample: Tensor, level: NoiseLevel, condition: Any = None) -> Tensor | Denoised:
        """Estimate x_0, of the shape of `sample`, `(batch, ...)`."""


def as_denoised(answer: Tensor | Denoised) -> Denoised:
    """A denoiser's answer as `Denoised`, whether it came as one or as a tensor."""
    return answer if isinstance(answer, Denoised) else Denoised(answer)


class ModelDenoiser:
    """A network as a denoiser.

    The network is called as `model(input_scale * x_t, timestep, **condition)` in its own dtype, a transformer
    of diffusers as `core.networks` says (by name, on its own scale of timesteps); it may return a tensor, a
    tuple that begins with one, or an output object with `.sample`. Twice the sample's channels mean learned
    variance: the second half becomes `Denoised.extra`. Where nobody asks for gradients, a module in
    evaluation mode runs under `torch.inference_mode`, which is a few per cent faster on a small one; what it
    answers is a plain tensor all the same.

    Args:
        model: The network, such as a `UNet2DConditionModel` or an `SD3Transformer2DModel`. What its
            configuration says that it has to be told must be in the condition.
        prediction_type: What it predicts: one of `guided_diffusers.core.prediction.PREDICTION_TYPES`.
        clip: What is done to x_0 before any guidance sees it: None, nothing; a number c, clipping to [-c, c];
            a function `x_0 -> x_0`, such as `DynamicThreshold`.

    Raises:
        TypeError: A model that cannot be called.
        ValueError: An unknown prediction type, a clip that is not positive, or a network of diffusers that is
            called in a way which is not known.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        prediction_type: str,
        clip: float | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model: Any = read("model", model, _MODEL)
        self.network = Network(model)
        self.prediction_type = read("prediction_type", prediction_type, Literal[PREDICTION_TYPES])
        self.clip = clip if callable(clip) else read("clip", clip, _CLIP)
        modules = model.modules() if isinstance(model, torch.nn.Module) else ()
        held = ((m._parameters, name) for m in modules for name, p in m._parameters.items() if p is not None)
        self._first: tuple[Mapping[str, Any], str] = next(held, ({}, ""))
        self._may_infer = isinstance(model, torch.nn.Module) and not has_offloading_hooks(model)

    def __call__(self, sample: Tensor, level: NoiseLevel, condition: Any = None) -> Denoised:
        """Estimate x_0 of `sample`, `(batch, ...)`, with one forward."""
        return self.batch(sample, level, [condition])[0]

    def batch(self, sample: Tensor, level: NoiseLevel, conditions: Sequence[Any]) -> list[Denoised]:
        """Answer every condition with ONE forward: the network's batch is `len(conditions) * batch`."""
        count, dtype, scale = len(conditions), self._dtype(sample.dtype), level.scalars[2]
        arguments = _arguments(conditions)
        timestep = _repeated_timestep(level.timestep, count, sample.device)
        sample = at_least_float32(sample)
        seen = sample if isinstance(scale, float) and scale == 1 else factor(scale, sample) * sample
        seen = seen if seen.dtype == dtype else seen.to(dtype)
        seen = torch.cat([seen] * count) if count > 1 else seen
        infer = self._may_infer and not torch.is_grad_enabled() and not self.model.training
        with torch.inference_mode() if infer else nullcontext():
            output = self.network(seen, timestep, arguments)
        output = output if isinstance(output, Tensor) else output[0]
        extras: Iterable[Tensor | None] = repeat(None)
        if not isinstance(output, Tensor) or output.shape != seen.shape:
            output, extra = _split(output, seen, sample)
            extras = extra.clone().unflatten(0, (count, -1)).unbind()
        # The arithmetic, once for all conditions, makes plain tensors of what inference mode computed.
        denoised: Iterable[Tensor] = denoised_of(
            output.view(count, *sample.shape), sample, level, self.prediction_type
        ).unbind()
        if self.clip is not None:
            denoised = map(self._clipped, denoised)
        return list(map(Denoised, denoised, extras))

    def _dtype(self, default: torch.dtype) -> torch.dtype:
        """`dtype_of` the model, where its first parameter still is."""
        owner, name = self._first
        parameter = owner.get(name)
        if parameter is not None and parameter.dtype in _COMPUTE_DTYPES:
            return parameter.dtype
        return dtype_of(self.model, default)

    def _clipped(self, x0: Tensor) -> Tensor:
        return self.clip(x0) if callable(self.clip) else x0.clamp(-self.clip, self.clip)


class DynamicThreshold:
    """Dynamic thresholding: clip x_0 to its own quantile of |x_0| and rescale it to [-1, 1].

    Args:
        quantile: In (0, 1]; the paper uses 0.995.
        maximum: Upper bound of the threshold, at least 1, may be infinite; at 1 this is clipping to [-1, 1].

    References:
        Saharia et al., "Photorealistic Text-to-Image Diffusion Models" (arXiv:2205.11487), section 2.3.
    """

    def __init__(self, quantile: float = 0.995, maximum: float = float("inf")) -> None:
        self.quantile = read("quantile", quantile, Annotated[float, Within(0, 1, "(]")])
        number = read("maximum", maximum, Annotated[float, AtLeast(1, finite=False)])
        self.maximum = number if number < torch.finfo(torch.float32).max else float("inf")

    def __call__(self, x0: Tensor) -> Tensor:
        """Threshold each image of x_0, `(batch, ...)`, by itself."""
        # Saharia et al., section 2.3
        threshold = x0.flatten(1).abs().quantile(self.quantile, dim=1).clamp(1, self.maximum)
        threshold = broadcast(threshold, x0)
        return x0.clamp(-threshold, threshold) / threshold


def _split(output: Any, seen: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction and the learned variance, of twice the channels; ValueError for any other output."""
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(seen):
        raise ValueError(f"the network's output is {shown(output)} for a batch of {len(seen)}")
    batch, channels, *sides = seen.shape
    if output.shape != (batch, 2 * channels, *sides):
        given = f"the network's output has shape {(len(sample), *output.shape[1:])}"
        allowed = "its shape, or twice its channels (learned variance)"
        raise ValueError(f"{given} for a sample of {tuple(sample.shape)}; allowed: {allowed}")
    prediction, extra = output.chunk(2, dim=1)
    return prediction, extra


def _arguments(conditions: Sequence[Any]) -> Mapping[str, Any]:
    """The network's keyword arguments: of each a `Condition`'s, a mapping's, or none."""
    many = [{} if each is None else getattr(each, "positive", each) for each in conditions]
    for arguments in many:
        if not isinstance(arguments, _MAPPING):
            raise TypeError(f"condition is {a_kind_of(arguments)}; allowed: a Condition, or a mapping")
    return many[0] if len(many) == 1 else _concatenated(many)


def _concatenated(many: Sequence[Any], path: str = "") -> Any:
    """Join the arguments of several conditions along the batch; what is no tensor must be the same in all."""
    first, others = many[0], many[1:]
    if path in WITHOUT_A_BATCH and all(_equal(other, first) for other in others):
        return first
    if isinstance(first, Tensor):
        try:
            return torch.cat([*many])
        except (TypeError, RuntimeError):
            shapes = [getattr(other, "shape", ()) for other in many]
            if all(shape[1:] == first.shape[1:] for shape in shapes):
                raise
            listed = ", ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"condition {path!r} has shapes {listed}; they may differ in the batch only"
            ) from None
    if isinstance(first, _MAPPING):
        if not all([isinstance(other, _MAPPING) and other.keys() == first.keys() for other in others]):
            keys = " and ".join(str(list(m)) if isinstance(m, Mapping) else shown(m) for m in many)
            where = f"conditions of one step differ in their arguments{path and f' under {path}'}: {keys}"
            raise ValueError(
                f"{where}; allowed: the same in all, as Condition(positive, negative) gives them"
            )
        return {key: _concatenated([m[key] for m in many], f"{path}.{key}" if path else key) for key in first}
    if isinstance(first, list | tuple) and first and all(map(torch.is_tensor, first)):
        if any(not isinstance(other, list | tuple) or len(other) != len(first) for other in others):
            raise ValueError(f"condition {path!r} has other numbers of tensors in the conditions of one step")
        return [_concatenated(rows, path) for rows in zip(*many, strict=True)]
    if any(other is not first and other != first for other in others):
        raise ValueError(f"condition {path!r} is no tensor and differs between the conditions of one step")
    return first


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments without a batch are the same: tensors, or sequences of them."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    several = isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other)
    return several and all(map(_equal, one, other))


def _repeated_timestep(timestep: Any, count: int, device: torch.device) -> Any:
    if not isinstance(timestep, Tensor):
        return timestep
    timestep = timestep if timestep.device == device else timestep.to(device)
    return timestep.repeat(count) if timestep.ndim else timestep


def has_offloading_hooks(model: torch.nn.Module) -> bool:
    """Whether calls move weights, which must not be born in inference mode: training could not use them."""
    return any("_hf_hook" in vars(each) or "_diffusers_hook" in vars(each) for each in model.modules())


def dtype_of(model: Any, default: torch.dtype) -> torch.dtype:
    """The dtype a network computes in.

    Its first parameter says so, which is quick to ask; where that is stored in less (quantised, layerwise
    cast) the model itself does.
    """
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    if first is not None and first.dtype in _COMPUTE_DTYPES:
        return first.dtype
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else default
