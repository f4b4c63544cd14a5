"""What a network predicts, as one table: x_0 = c_skip x_t + c_out output.

Every prediction type is linear in the sample and the output, so a type is one row `(c_skip, c_out)` of
functions of the noise level (alpha, sigma). With eps = (x_t - alpha x_0) / sigma and n = alpha^2 + sigma^2:

| type | the network's output | c_skip | c_out |
|---|---|---|---|
| epsilon | eps | 1 / alpha | -sigma / alpha |
| sample | x_0 | 0 | 1 |
| v_prediction | v, on the unit circle of (alpha, sigma) / sqrt(n) | alpha / n | -sigma / sqrt(n) |
| flow_prediction | eps - x_0 | 1 / (alpha + sigma) | -sigma / (alpha + sigma) |
| reversed_flow_prediction | x_0 - eps | as flow_prediction | -(as flow_prediction) |
| trigflow | F of TrigFlow, with sigma_data = 1 / input_scale | alpha | -sigma |
| scaled_trigflow | sigma_data F, as SCMScheduler reads it | alpha | -sigma / sigma_data |
| edm | F, with sigma_data^2 = 1 / input_scale^2 - sigma^2 | sigma_data^2 / n | sigma sigma_data / sqrt(n) |
| edm_v_prediction | -F | as edm | -(as edm) |

where n = sigma_data^2 + sigma^2 = 1 / input_scale^2 in the rows of EDM.

References:
    Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models" (arXiv:2202.00512),
    appendix D: v. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (arXiv:2206.00364), table 1: EDM. Lipman et al., "Flow Matching for Generative Modeling"
    (arXiv:2210.02747): flow. Lu and Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models" (arXiv:2410.11081), section 3: TrigFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_same_shape, check_that
from guided_diffusers.core.declared import read
from guided_diffusers.core.noise import Coefficient, NoiseLevel

Row = Callable[[Coefficient, Coefficient, Coefficient], tuple[Coefficient, Coefficient]]
"""`(alpha, sigma, input_scale) -> (c_skip, c_out)`: of floats, or of tensors of one shape."""


_NO_SIGNAL = (
    "epsilon prediction says nothing about x_0 at alpha = 0 (zero terminal SNR): use a model with "
    "prediction_type 'v_prediction' or 'sample', or a schedule that keeps some signal"
)


def _epsilon(alpha: Coefficient, sigma: Coefficient, _: Coefficient) -> tuple[Coefficient, Coefficient]:
    if _any(alpha == 0):
        raise ValueError(_NO_SIGNAL)
    return 1 / alpha, -sigma / alpha


def _sample(alpha: Coefficient, sigma: Coefficient, _: Coefficient) -> tuple[Coefficient, Coefficient]:
    return 0 * alpha, 0 * alpha + 1


def _v(alpha: Coefficient, sigma: Coefficient, _: Coefficient) -> tuple[Coefficient, Coefficient]:
    # Salimans and Ho, appendix D
    norm_squared = alpha * alpha + sigma * sigma
    return alpha / norm_squared, -sigma / _root(norm_squared)


def _flow(alpha: Coefficient, sigma: Coefficient, _: Coefficient) -> tuple[Coefficient, Coefficient]:
    # Lipman et al.: of x_t = alpha x_0 + sigma eps and v = eps - x_0
    total = alpha + sigma
    return 1 / total, -sigma / total


def _trigflow(alpha: Coefficient, sigma: Coefficient, _: Coefficient) -> tuple[Coefficient, Coefficient]:
    # Lu and Song, section 3
    return alpha, -sigma


def _scaled_trigflow(
    alpha: Coefficient, sigma: Coefficient, scale: Coefficient
) -> tuple[Coefficient, Coefficient]:
    return alpha, -sigma * scale


def _edm(alpha: Coefficient, sigma: Coefficient, scale: Coefficient) -> tuple[Coefficient, Coefficient]:
    # Karras et al., table 1: c_skip and c_out, with sigma_data^2 = 1 / input_scale^2 - sigma^2
    skip = 1 - (sigma * scale) * (sigma * scale)
    above = skip.clamp(min=0) if isinstance(skip, Tensor) else max(skip, 0.0)  # rounding may leave it below 0
    return skip, sigma * _root(above)


def _negated(row: Row) -> Row:
    def negated(
        alpha: Coefficient, sigma: Coefficient, scale: Coefficient
    ) -> tuple[Coefficient, Coefficient]:
        skip, out = row(alpha, sigma, scale)
        return skip, -out

    return negated


def _root(value: Coefficient) -> Coefficient:
    return math.sqrt(value) if isinstance(value, float) else value.sqrt()


def _any(found: Tensor | bool) -> bool:
    return found if isinstance(found, bool) else bool(found.any())


_ROWS: dict[str, Row] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _v,
    "flow_prediction": _flow,
    "reversed_flow_prediction": _negated(_flow),
    "trigflow": _trigflow,
    "scaled_trigflow": _scaled_trigflow,
    "edm": _edm,
    "edm_v_prediction": _negated(_edm),
}
PREDICTION_TYPES = tuple(_ROWS)
_TYPE: Any = Literal[PREDICTION_TYPES]


def coefficients(level: NoiseLevel, prediction_type: str) -> tuple[Tensor, Tensor]:
    """The row `(c_skip, c_out)` of a prediction type at a noise level: `x_0 = c_skip x_t + c_out output`.

    Args:
        level: Alpha and sigma 0-dim or `(batch,)`.
        prediction_type: One of `PREDICTION_TYPES`.

    Returns:
        Two float64 tensors of alpha's shape.

    Raises:
        ValueError: An unknown prediction type, or epsilon prediction at alpha = 0.
    """
    skip, out = _ROWS[read("prediction_type", prediction_type, _TYPE)](*level.scalars)
    return torch.as_tensor(skip, dtype=torch.float64), torch.as_tensor(out, dtype=torch.float64)


def denoised_of(output: Tensor, sample: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """`to_denoised` of arguments that are known to be right, the sample in the dtype of the result."""
    skip, out = level.factors(prediction_type, _ROWS[prediction_type], sample)
    # x_0 = c_skip x_t + c_out output
    return skip * sample + out * output.to(sample.dtype)


def output_of(x0: Tensor, sample: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """`from_denoised` of arguments that are known to be right, the sample in the dtype of the result."""
    skip, inverse = level.factors(("inverse", prediction_type), _INVERSES[prediction_type], sample)
    # output = (x_0 - c_skip x_t) / c_out
    return (x0.to(sample.dtype) - skip * sample) * inverse


def _inverse(prediction_type: str) -> Row:
    def inverse(
        alpha: Coefficient, sigma: Coefficient, scale: Coefficient
    ) -> tuple[Coefficient, Coefficient]:
        skip, out = _ROWS[prediction_type](alpha, sigma, scale)
        if _any(out == 0):
            raise ValueError(f"prediction_type {prediction_type!r} has no output for an x_0 at sigma = 0")
        return skip, 1 / out

    return inverse


_INVERSES = {each: _inverse(each) for each in PREDICTION_TYPES}


def to_denoised(output: Tensor, sample: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """Read x_0 from a network's output.

    Args:
        output: The network's output, `(batch, ...)`, or several: `(count, batch, ...)`.
        sample: x_t, `(batch, ...)`, unscaled.
        level: The noise level of x_t.
        prediction_type: One of `PREDICTION_TYPES`.

    Returns:
        x_0 of output's shape, in float32 (float64 where the sample is).

    Raises:
        ValueError: An unknown prediction type, or epsilon prediction at alpha = 0.
    """
    kind, sample = read("prediction_type", prediction_type, _TYPE), at_least_float32(sample)
    alike = output.shape[-sample.ndim :] == sample.shape
    check_that(alike, "output", output, f"a tensor of sample's shape, {tuple(sample.shape)}, or several")
    return denoised_of(output, sample, level, kind)


def from_denoised(x0: Tensor, sample: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """Write x_0 as a network of the given prediction type would have: the inverse of `to_denoised`.

    Args:
        x0: The estimate of x_0, `(batch, ...)`.
        sample: x_t, of x0's shape, unscaled.
        level: The noise level of x_t, with sigma > 0 (at sigma = 0 only `sample` prediction has an inverse).
        prediction_type: One of `PREDICTION_TYPES`.

    Returns:
        The output, of x0's shape, in float32 (float64 where the sample is).

    Raises:
        ValueError: An unknown prediction type, epsilon prediction at alpha = 0, or no inverse at sigma = 0.
    """
    kind, sample = read("prediction_type", prediction_type, _TYPE), at_least_float32(sample)
    check_same_shape("x0", x0, "sample", sample)
    return output_of(x0, sample, level, kind)


def at_least_float32(sample: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
