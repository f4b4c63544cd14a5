"""A Gaussian mixture in the plane: its denoiser and its classifier are known exactly, here also as networks.

With components N(m_k, v_k I) of weights w_k, x_t = alpha x_0 + sigma eps has components N(alpha m_k, s_k I)
of the same weights, s_k = alpha^2 v_k + sigma^2, and

    E[x_0 | x_t, k] = m_k + alpha v_k / s_k (x_t - alpha m_k),
    p(k | x_t) = softmax_k(log w_k + log N(x_t; alpha m_k, s_k I)).

Nothing here uses the package's tables: a network looks its noise level up by the timestep it receives, undoes
the input scale, and writes its answer in its prediction type's own definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Levels = Mapping[float, tuple[Tensor, Tensor, Tensor]]  # timestep -> (alpha, sigma, input_scale)


@dataclass(frozen=True)
class GaussianMixture:
    """Isotropic components: means `(K, D)`, deviations `(K,)`, weights `(K,)`, all float64."""

    means: Tensor
    deviations: Tensor
    weights: Tensor

    def _given_component(self, sample: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log p(k, x_t) up to a constant `(batch, K)`, and E[x_0 | x_t, k] `(batch, K, D)`."""
        variance = alpha**2 * self.deviations**2 + sigma**2
        offset = sample[:, None] - alpha * self.means
        log_joint = (
            self.weights.log()
            - sample.shape[1] / 2 * variance.log()
            - offset.square().sum(-1) / (2 * variance)
        )
        gain = (alpha * self.deviations**2 / variance)[:, None]
        return log_joint, self.means + gain * offset

    def denoised(self, sample: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], or E[x_0 | x_t, label] where a sample's label is not -1."""
        log_joint, x0 = self._given_component(sample, alpha, sigma)
        mixed = (log_joint.softmax(1)[..., None] * x0).sum(1)
        if labels is None:
            return mixed
        own = x0[torch.arange(len(sample)), labels]
        return torch.where((labels >= 0)[:, None], own, mixed)

    def log_posterior(self, sample: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p(k | x_t), `(batch, K)`."""
        return self._given_component(sample, alpha, sigma)[0].log_softmax(1)


MIXTURE = GaussianMixture(
    means=torch.tensor([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], dtype=torch.float64),
    deviations=torch.tensor([0.25, 0.4, 0.15], dtype=torch.float64),
    weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
)
SIGMA_DATA = 0.5  # of the EDM schedulers' default configuration


class MixtureNetwork(nn.Module):
    """The exact denoiser as a network: `(input_scale x_t, timestep, class_labels) -> output`."""

    def __init__(self, levels: Levels, prediction_type: str, mixture: GaussianMixture = MIXTURE) -> None:
        super().__init__()
        self.levels, self.prediction_type, self.mixture = levels, prediction_type, mixture
        self.batches: list[int] = []
        self.with_graph: list[bool] = []

    def forward(self, scaled: Tensor, timestep: Any, class_labels: Tensor | None = None) -> Tensor:
        self.batches.append(len(scaled))
        self.with_graph.append(torch.is_grad_enabled())
        alpha, sigma, input_scale = self.levels[float(timestep)]
        sample = scaled.double() / input_scale
        x0 = self.mixture.denoised(sample, alpha, sigma, class_labels)
        epsilon = (sample - alpha * x0) / sigma
        return self._written(sample, x0, epsilon, alpha, sigma, input_scale).to(scaled.dtype)

    def _written(
        self, sample: Tensor, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor, input_scale: Tensor
    ) -> Tensor:
        match self.prediction_type:
            case "epsilon":
                return epsilon
            case "sample":
                return x0
            case "v_prediction":  # of the variance-preserving sample that the network sees
                return input_scale * (alpha * epsilon - sigma * x0)
            case "flow_prediction":
                return epsilon - x0
            case "reversed_flow_prediction":
                return x0 - epsilon
            case "scaled_trigflow":  # -dx/dt of x = cos(t) x_0 + sin(t) z, z = sigma_data eps
                return alpha * epsilon * SIGMA_DATA - (sigma / SIGMA_DATA) * x0
            case "edm" | "edm_v_prediction":  # D = c_skip x + c_out F (Karras et al., table 1)
                skip = SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)
                out = sigma * SIGMA_DATA / (SIGMA_DATA**2 + sigma**2).sqrt()
                written = (x0 - skip * sample) / out
                return written if self.prediction_type == "edm" else -written
        raise AssertionError(self.prediction_type)


class MixtureClassifier(nn.Module):
    """The exact noise-aware classifier: `(input_scale x_t, timestep) -> log p(k | x_t)`, `(batch, K)`."""

    def __init__(self, levels: Levels, mixture: GaussianMixture = MIXTURE) -> None:
        super().__init__()
        self.levels, self.mixture = levels, mixture

    def forward(self, scaled: Tensor, timestep: Any) -> Tensor:
        alpha, sigma, input_scale = self.levels[float(timestep)]
        return self.mixture.log_posterior(scaled.double() / input_scale, alpha, sigma)


def log_prob_of(classifier: nn.Module, labels: Tensor) -> Callable[..., Tensor]:
    """log p(label | x_t) in the signature that `ClassifierGuidance` asks for."""

    def log_prob(sample: Tensor, level: Any, condition: Any) -> Tensor:
        log_probs = classifier(level.input_scale.to(sample.dtype) * sample, level.timestep)
        return log_probs.gather(1, labels[:, None])[:, 0]

    return log_prob


# What each kind of scheduler means by its table of sigmas: sigma -> (alpha, sigma, input_scale).
COORDINATES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "preserving": lambda s: ((1 + s**2).rsqrt(), s * (1 + s**2).rsqrt(), torch.ones_like(s)),
    "exploding": lambda s: (torch.ones_like(s), s, (1 + s**2).rsqrt()),
    "edm": lambda s: (torch.ones_like(s), s, (SIGMA_DATA**2 + s**2).rsqrt()),
    "flow": lambda s: (1 - s, s, torch.ones_like(s)),
    "signal": lambda s: (s, 1 - s, torch.ones_like(s)),
    "angle": lambda s: (s.cos(), SIGMA_DATA * s.sin(), torch.ones_like(s) / SIGMA_DATA),
    "quarter turn": lambda s: (
        (s * torch.pi / 2).cos().abs(),
        (s * torch.pi / 2).sin(),
        torch.ones_like(s),
    ),
}


def levels_of(scheduler: Any, coordinates: str) -> Levels:
    """The noise level at each listed timestep, read from a scheduler's arrays.

    `coordinates` is "timestep" for schedulers that look alpha-bar up by timestep, else a key of COORDINATES.
    The second stages of KDPM2 are at the interpolated sigmas, which its ancestral form keeps one place
    before.
    """
    if coordinates == "timestep":
        table = getattr(scheduler, "process", None)
        table = scheduler.alphas_cumprod.double() if table is None else table.abar  # ours keep float64
        rows = [
            (table[int(t)].sqrt(), (1 - table[int(t)]).sqrt(), torch.ones_like(table[0]))
            for t in scheduler.timesteps
        ]
    elif coordinates in ("angle", "quarter turn"):
        rows = [COORDINATES[coordinates](t.double()) for t in scheduler.timesteps]
    else:
        back = int(type(scheduler).__name__ == "KDPM2AncestralDiscreteScheduler")
        tables = [scheduler.sigmas, getattr(scheduler, "sigmas_interpol", scheduler.sigmas)]
        sigmas = [tables[i % 2][i - back * (i % 2)].double() for i in range(len(scheduler.timesteps))]
        rows = [COORDINATES[coordinates](sigma) for sigma in sigmas]
    levels: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
    for timestep, row in zip(scheduler.timesteps, rows, strict=True):
        assert levels.setdefault(float(timestep), row)[1] == row[1], "a timestep stands for two noise levels"
    return levels
