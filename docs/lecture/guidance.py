"""The lecture's pictures of guidance, on mixtures whose denoiser and classifier are exact."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from theory import BLUE, GREEN, ORANGE, RED, SKY, panels, scheduler_of
from torch import Tensor

from guided_diffusers import GuidedDDIMScheduler, NoiseLevel, sampling_loop
from guided_diffusers.core.exact import CLEAN, GaussianMixture
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance, GuidanceSum

PLANE = GaussianMixture.of([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], [0.25, 0.4, 0.15], [0.5, 0.3, 0.2])
OVERLAPPING = GaussianMixture.of([[-0.7], [0.5]], [0.5, 0.5])
MODES = GaussianMixture.of(
    [[-0.3, 0.9], [1.4, 0.9], [1.4, -0.9], [-1.3, 0.4], [-0.7, -0.9]],
    [0.2] * 5,
    classes=[0, 0, 0, 1, 1],
)
"""A class of three components, one of them near the other class."""
GREY = "#AAAAAA"


def noise_aware(samples: int) -> Figure:
    """What classifiers say of x_t over the noise: the exact one, and one of clean images, used two ways."""
    x0, labels = PLANE.draw(samples, torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ratios = torch.logspace(-1.5, 1.5, 31, dtype=torch.float64)
    ways: dict[str, tuple[str, str, Any]] = {
        r"exact $p(y\,|\,x_t)$": (BLUE, "-", lambda x, level: (x, level)),
        r"clean classifier at $x_t$": (RED, "--", lambda x, level: (x, CLEAN)),
        r"clean classifier at $D(x_t)$": (GREEN, "-.", lambda x, level: (PLANE.denoise(x, level), CLEAN)),
    }
    figure, [axes] = panels(1, 2, (9, 3.5), sharex=True)
    for name, (colour, style, seen) in ways.items():
        entropy, right = [], []
        for ratio in ratios:
            alpha = (1 + ratio**2).rsqrt()
            level = NoiseLevel(alpha=alpha, sigma=ratio * alpha)
            answers = PLANE.log_joint(*seen(alpha * x0 + ratio * alpha * noise, level)).log_softmax(1)
            entropy.append(-answers.gather(1, labels[:, None]).mean())
            right.append(100 * (answers.argmax(1) == labels).double().mean())
        axes[0].plot(ratios, entropy, style, color=colour, label=name)
        axes[1].plot(ratios, right, style, color=colour, label=name)
    axes[0].set(yscale="log", ylim=(1e-3, 30), ylabel="cross-entropy, nats")
    axes[1].set(ylim=(0, 102), ylabel="accuracy, %")
    for axis in axes:
        axis.set(xscale="log", xlabel=r"noise level $\sigma / \alpha$")
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure


def classifier(samples: int) -> Figure:
    """An unconditional denoiser with the exact classifier, in both forms, over scales."""
    scales, forms = (0.0, 1.0, 4.0), {"score": "score form", "mean_shift": "Algorithm 1 (mean shift)"}
    figure, axes = panels(2, 3, (9, 5.4), sharex=True, sharey=True)
    labels = torch.full((samples,), 1)
    for row, (form, name) in zip(axes, forms.items(), strict=True):
        for axis, scale in zip(row, scales, strict=True):
            guidance = ClassifierGuidance(PLANE.log_prob, scale, form=form)
            drawn = draw(PLANE, guidance, labels, steps=25, conditional=False)
            _scatter(axis, drawn, PLANE, 1)
            axis.set(xlim=(-2.2, 2.8), ylim=(-1.8, 2.1))
            axis.set_title(f"{name}, s = {scale:g}", fontsize=10)
    return figure


def classifier_free(samples: int) -> Figure:
    """What classifier-free guidance draws, beside the product of densities that its score is of."""
    gammas = (1.0, 2.0, 5.0)
    figure, [axes] = panels(1, 3, (10, 3.3), sharex=True, sharey=True)
    places = torch.linspace(-2.2, 3.2, 541, dtype=torch.float64)
    labels, step = torch.ones(samples, dtype=torch.int64), places[1] - places[0]
    everywhere = torch.ones(len(places), dtype=torch.int64)
    posterior = OVERLAPPING.log_prob(places[:, None], CLEAN, everywhere)
    conditional = OVERLAPPING.log_density(places[:, None]) + posterior
    for axis, gamma in zip(axes, gammas, strict=True):
        drawn = draw(OVERLAPPING, ClassifierFreeGuidance(gamma), labels, steps=100, deterministic=True)
        product = (conditional + (gamma - 1) * posterior).exp()
        axis.hist(drawn[:, 0].numpy(), bins=80, range=(-2.2, 3.2), density=True, color=SKY, label="drawn")
        axis.plot(
            places, conditional.exp() / (conditional.exp().sum() * step), ":", color="black", label="p(x|y)"
        )
        axis.plot(
            places, product / (product.sum() * step), color=RED, label=r"$\propto p(x|y)\,p(y|x)^{\gamma-1}$"
        )
        axis.set(title=rf"$\gamma = {gamma:g}$", xlabel="x")
    axes[0].legend(fontsize=9, loc="upper left")
    axes[0].set_ylabel("density")
    return figure


def interval(samples: int) -> Figure:
    """Classifier-free guidance everywhere, and only where the noise is neither high nor low."""
    cases = {
        r"unguided, $\gamma = 1$": GuidanceSum(),
        r"$\gamma = 4$ everywhere": ClassifierFreeGuidance(4.0),
        r"$\gamma = 4$ for $\sigma/\alpha$ in (0.1, 0.7]": ClassifierFreeGuidance(4.0, (0.1, 0.7)),
    }
    figure, [axes] = panels(1, 3, (10, 3.2), sharex=True, sharey=True)
    labels = torch.zeros(samples, dtype=torch.int64)
    for axis, (title, guidance) in zip(axes, cases.items(), strict=True):
        drawn = draw(MODES, guidance, labels, steps=100, deterministic=True)
        _scatter(axis, drawn, MODES, 0)
        nearest = (drawn[:, None] - MODES.means[MODES.classes == 0]).square().sum(2).argmin(1)
        for mode, (x, y) in enumerate(MODES.means[MODES.classes == 0].tolist()):
            share = f"{100 * (nearest == mode).double().mean():.0f}%"
            axis.text(x, y + 0.5, share, ha="center", bbox={"color": "white", "pad": 1})
        axis.set(xlim=(-2.2, 2.4), ylim=(-1.8, 1.9))
        axis.set_title(title, fontsize=10)
    return figure


def draw(
    data: GaussianMixture,
    guidance: Guidance,
    labels: Tensor,
    steps: int,
    conditional: bool = True,
    deterministic: bool = False,
) -> Tensor:
    """Samples of the guided exact denoiser, (labels, dimensions), by DDPM or by DDIM.

    Args:
        data: The mixture.
        guidance: The guidance.
        labels: The class of each sample.
        steps: Of the chain.
        conditional: The denoiser that is guided is told the class.
        deterministic: DDIM and not DDPM.
    """
    scheduler = scheduler_of(steps)
    if deterministic:
        scheduler = GuidedDDIMScheduler.from_config(scheduler.config)

    def denoiser(sample: Tensor, level: NoiseLevel, condition: Tensor | None) -> Tensor:
        return data.denoise(sample, level, condition if conditional else None)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(labels), data.means.shape[1], dtype=torch.float64, generator=generator)
    return sampling_loop(guidance(denoiser), scheduler, noise, labels, steps, generator=generator)


def _scatter(axis: Any, drawn: Tensor, data: GaussianMixture, label: int) -> None:
    """Samples over the components' circles of 1 and 2 deviations: the class's in blue, the others in grey."""
    for mean, deviation, owner in zip(data.means, data.deviations, data.classes, strict=True):
        colour = BLUE if owner == label else GREY
        for times in (1, 2):
            axis.add_patch(
                Circle(mean.tolist(), times * deviation.item(), fill=False, color=colour, linewidth=1)
            )
    axis.plot(drawn[:, 0], drawn[:, 1], ".", color=ORANGE, markersize=3, alpha=0.5, zorder=0)
    axis.set_aspect("equal")
