"""The lecture's pictures of likelihoods and of the diffusion process, on models that are known exactly."""

from __future__ import annotations

import math
from typing import Any

import torch
from linear_vae import LinearVAE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from guided_diffusers import GuidedDDPMScheduler, NoiseLevel, sampling_loop
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.core.posterior import posterior_mean
from guided_diffusers.core.prediction import coefficients
from guided_diffusers.models.evidence import METHODS, log_likelihood
from guided_diffusers.training.tasks.contrastive import contrastive_loss

BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
"""Of Okabe and Ito's palette, which the colour-blind tell apart."""

LINE = GaussianMixture.of([[-1.2], [0.6], [1.4]], [0.15, 0.25, 0.1], [0.4, 0.4, 0.2])


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure that belongs to no window, and its axes, always (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def scheduler_of(steps: int, **options: Any) -> GuidedDDPMScheduler:
    """The cosine schedule's chain of so many steps, x_0 never clipped."""
    config = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "clip_sample": False}
    scheduler = GuidedDDPMScheduler(**{**config, **options})
    scheduler.set_timesteps(steps)
    return scheduler


def prior_estimate(samples: int) -> Figure:
    """Both estimates of log p(x) of a linear autoencoder, less the exact one, over their samples."""
    model = LinearVAE()
    images = model.draw(4, seed=1)
    counts = [count for count in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if count <= samples]
    figure, [axes] = panels(1, 2, (9, 3.6), sharex=True)
    for method, colour, name in zip(
        METHODS, (BLUE, RED), ("samples of q(z | x)", "of the prior"), strict=True
    ):
        errors = torch.stack([_errors(model, images, count, method) for count in counts])
        mean, spread = errors.mean(1), errors.std(1)
        for axis in axes:
            axis.plot(counts, mean, color=colour, marker="o", markersize=3, label=name)
            axis.fill_between(counts, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    for axis in axes:
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="samples K")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("estimate less exact log p(x), nats")
    axes[0].legend(loc="lower right")
    axes[1].set(ylim=(-1.2, 0.3), title="the same, enlarged")
    figure.suptitle("A linear VAE, 8 latent numbers, 64 pixels: mean ± deviation of 16 runs", fontsize=11)
    return figure


def _errors(model: LinearVAE, images: Tensor, count: int, method: str) -> Tensor:
    runs = [log_likelihood(model, images, count, method, seed=seed, chunk=4096) for seed in range(4)]
    return torch.cat([run - model.log_density(images) for run in runs])


def processes(paths: int) -> Figure:
    """Densities of x_t on the line, with forward trajectories on the left, DDPM's on the right."""
    scheduler = scheduler_of(1000)
    forward, backward = forward_paths(LINE, scheduler, paths), reverse_paths(LINE, scheduler, paths)
    figure, [axes] = panels(1, 2, (9, 3.8), sharex=True, sharey=True)
    times = torch.arange(0, 1000, 5)
    heights = torch.linspace(-3.4, 3.4, 341, dtype=torch.float64)
    levels = [scheduler.noise_level(int(time)) for time in times]
    density = torch.stack([LINE.log_density(heights[:, None], level).exp() for level in levels], dim=1)
    for axis, lines, title in zip(
        axes, (forward, backward), ("forward: noise is added", "reverse: Algorithm 2 draws"), strict=True
    ):
        shown = (density / density.amax(0)).sqrt()  # so that thin tails can be seen
        axis.pcolormesh(times, heights, shown, cmap="Blues", vmin=0, vmax=1.6, shading="nearest")
        axis.plot(torch.arange(1000), lines.T, linewidth=0.6, color=RED, alpha=0.7)
        axis.set(title=title, xlabel="timestep t", xlim=(0, 995), ylim=(-3.4, 3.4))
    axes[0].set_ylabel("x")
    return figure


def forward_paths(data: GaussianMixture, scheduler: GuidedDDPMScheduler, count: int) -> Tensor:
    """Trajectories of the Markov chain q(x_t | x_{t-1}) on the line, (count, timesteps), from t = 0."""
    generator = torch.Generator().manual_seed(3)
    sample, kept, before = data.draw(count, generator)[0], [], 1.0
    for timestep in range(len(scheduler.timesteps)):
        alpha = scheduler.noise_level(timestep).alpha
        beta = 1 - (alpha / before) ** 2
        noise = torch.randn(sample.shape, dtype=torch.float64, generator=generator)
        sample, before = (1 - beta).sqrt() * sample + beta.sqrt() * noise, alpha
        kept.append(sample[:, 0])
    return torch.stack(kept, dim=1)


def reverse_paths(data: GaussianMixture, scheduler: GuidedDDPMScheduler, count: int) -> Tensor:
    """Trajectories of Algorithm 2 with the exact denoiser, (count, timesteps), in order of t."""
    generator, kept = torch.Generator().manual_seed(4), []

    def keep(index: int, timestep: Tensor, sample: Tensor) -> Tensor:
        kept.append(sample[:, 0])
        return sample

    noise = torch.randn(count, 1, dtype=torch.float64, generator=generator)
    steps = len(scheduler.timesteps)
    sampling_loop(data.denoise, scheduler, noise, None, steps, generator=generator, callback=keep)
    return torch.stack([*kept[:-1][::-1], noise[:, 0]], dim=1)


def reverse_step() -> Figure:
    """The true q(x_next | x_t) beside the Gaussians that a reverse step draws from, by steps of the chain."""
    steps = (8, 40, 1000)
    figure, [axes] = panels(1, 3, (10, 3.3), sharex=True, sharey=True)
    units = torch.linspace(-3.5, 3.5, 281, dtype=torch.float64)
    for axis, count in zip(axes, steps, strict=True):
        level, following = _around(scheduler_of(count), 0.8)
        sample = level.alpha.reshape(1, 1) * -0.25  # between two components
        small, mean = _posterior(LINE.denoise(sample, level), sample, level, following)
        beta = (1 - (level.alpha / following.alpha) ** 2).item()
        places = mean + beta**0.5 * units
        truth = true_reverse(LINE, places, sample, level, following) * beta**0.5
        axis.fill_between(units, truth, color=SKY, alpha=0.6, label="true, with this $x_t$")
        for variance, name, style in ((small, r"variance $\tilde\beta_t$", "-"), (beta, r"$\beta_t$", "--")):
            scaled = variance / beta
            gaussian = (-(units**2) / (2 * scaled)).exp() / math.sqrt(2 * math.pi * scaled)
            axis.plot(units, gaussian, style, color=RED if style == "-" else "black", label=name)
        axis.set(title=f"{count} steps", xlabel=r"$(x_{t-1} - \mu)\ /\ \sqrt{\beta_t}$")
    axes[0].set_ylabel("density")
    axes[1].legend(loc="upper right", fontsize=9)
    return figure


def _around(scheduler: GuidedDDPMScheduler, noise_to_signal: float) -> tuple[NoiseLevel, NoiseLevel]:
    """The listed level nearest to a noise-to-signal ratio, and the next one."""
    levels = [scheduler.noise_level(int(timestep)) for timestep in scheduler.timesteps]
    distances = [abs(math.log(level.noise_to_signal / noise_to_signal)) for level in levels[:-1]]
    place = distances.index(min(distances))
    return levels[place], levels[place + 1]


def _posterior(x0: Tensor, sample: Tensor, level: NoiseLevel, following: NoiseLevel) -> tuple[float, float]:
    """Variance and mean of q(x_next | x_t, x_0)."""
    ratio = following.noise_to_signal**2 / level.noise_to_signal**2
    return (following.sigma**2 * (1 - ratio)).item(), posterior_mean(x0, sample, level, following).item()


def true_reverse(
    data: GaussianMixture, places: Tensor, sample: Tensor, level: NoiseLevel, following: NoiseLevel
) -> Tensor:
    """The density q(x_next | x_t) at places (n,) on the line, by Bayes' rule."""
    kept = level.alpha / following.alpha
    variance = level.sigma**2 - kept**2 * following.sigma**2
    likelihood = (
        -((sample[0, 0] - kept * places) ** 2) / (2 * variance) - 0.5 * (2 * math.pi * variance).log()
    )
    joint = data.log_density(places[:, None], following) + likelihood
    return (joint - data.log_density(sample, level)).exp()


def cascade(samples: int) -> Figure:
    """What first stages that are wrong leave in the second's images, and what these keep, over the level."""
    figure, [axes] = panels(1, 2, (9, 3.4), sharex=True)
    levels = torch.linspace(0, 1, 51, dtype=torch.float64)
    kept = 1 - levels**2
    stages = {"too bright by a half": (0.5, 1.0, RED), "half as varied": (0.0, 0.5, BLUE)}
    for name, (shift, deviation, colour) in stages.items():
        # z given z_s is N(alpha z_s, sigma^2), and z_s that of N(shift, deviation^2)
        variance = kept**2 * deviation**2 + kept * levels**2 + levels**2
        distance = ((kept * shift) ** 2 + (variance.sqrt() - 1) ** 2).sqrt()
        axes[0].plot(levels, distance, color=colour, label=name)
        for sigma in (0.0, 0.3, 0.6, 0.9):
            drawn = _second_stage(shift, deviation, sigma, samples)
            error = math.hypot(drawn.mean().item(), drawn.std().item() - 1)
            axes[0].plot(sigma, error, "o", color=colour, markersize=4)
    axes[1].plot(levels, kept, color="black")
    axes[0].set(
        xlabel=r"$\sigma_s$", title=r"distance of the large images' mean from the data", ylim=(0, None)
    )
    axes[1].set(xlabel=r"$\sigma_s$", title=r"correlation with the small image, $\alpha_s^2$")
    axes[0].legend(fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def _second_stage(shift: float, deviation: float, sigma: float, count: int) -> Tensor:
    """Mean pixels, (count,), of the exact second stage at a level, of small images N(shift, deviation^2)."""
    generator = torch.Generator().manual_seed(5)
    first, noise, start = torch.randn(3, count, 1, dtype=torch.float64, generator=generator)
    alpha = math.sqrt(1 - sigma**2)
    told = alpha * (alpha * (shift + deviation * first) + sigma * noise)

    def denoise(sample: Tensor, level: NoiseLevel, condition: Any = None) -> Tensor:
        gain = sigma**2 * level.alpha / (sigma**2 * level.alpha**2 + level.sigma**2)
        return told + gain * (sample - level.alpha * told)

    return sampling_loop(denoise, scheduler_of(100), start, None, 100, generator=generator)[:, 0]


def prediction_types() -> Figure:
    """The rows (c_skip, c_out) of the prediction table over the noise level."""
    ratio = torch.logspace(-2, 2, 201, dtype=torch.float64)
    level = NoiseLevel(alpha=(1 + ratio**2).rsqrt(), sigma=ratio * (1 + ratio**2).rsqrt())
    figure, [axes] = panels(1, 2, (9, 3.4), sharex=True, sharey=True)
    styles = {"epsilon": (RED, "-"), "v_prediction": (BLUE, "-"), "sample": (GREEN, "--")}
    for name, (colour, style) in styles.items():
        for axis, values in zip(axes, coefficients(level, name), strict=True):
            axis.plot(ratio, values.abs(), style, color=colour, label=name)
    for axis, title in zip(axes, (r"$c_{\rm skip}$", r"$|c_{\rm out}|$"), strict=True):
        axis.set(xscale="log", ylim=(-0.1, 3), title=title, xlabel=r"noise level $\sigma / \alpha$")
        axis.grid(alpha=0.3)
    axes[1].legend()
    return figure


def contrastive(samples: int) -> Figure:
    """The contrastive loss at a factor times the exact log-ratio: its minimum is at the truth."""
    data = GaussianMixture.of([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], [0.6, 0.7, 0.5], [0.5, 0.3, 0.2])
    x0, classes = data.draw(samples, torch.Generator().manual_seed(0))
    factors = torch.linspace(0.3, 2.5, 45, dtype=torch.float64)
    figure, [[axis]] = panels(1, 1, (6, 3.6))
    for ratio, colour in ((0.3, BLUE), (1.0, GREEN), (3.0, RED)):
        alpha = (1 + ratio**2) ** -0.5
        level = NoiseLevel(alpha=alpha, sigma=ratio * alpha)
        noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x_t = alpha * x0 + ratio * alpha * noise
        scores = data.log_joint(x_t, level) - data.log_density(x_t, level)[:, None] - data.weights.log()
        identity = torch.eye(3, dtype=torch.float64)
        losses = torch.stack([contrastive_loss(scores, identity, classes, f).mean() for f in factors])
        excess = losses - losses.min()
        axis.plot(factors, excess, color=colour, label=rf"$\sigma / \alpha = {ratio:g}$")
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set(ylim=(-0.005, 0.12), xlabel="factor on the exact log-ratio", ylabel="loss above its least, nats")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
