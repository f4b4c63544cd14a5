"""Algorithm 1 with the exact classifier draws from the true conditional, the better the more its steps."""

from __future__ import annotations

import pytest
import torch
from laws.exact import draw, exact_denoiser, exact_log_prob
from laws.mixture import MIXTURE

from guided_diffusers import GuidedDDPMScheduler, noise_level, sampling_loop
from guided_diffusers.guidance import ClassifierGuidance, Step
from guided_diffusers.schedulers import next_noise_level


def guided(form, steps, labels, variance_type="fixed_small", **options):
    scheduler = GuidedDDPMScheduler(
        variance_type=variance_type, timestep_spacing="linspace", clip_sample=False
    )
    term = ClassifierGuidance(exact_log_prob(labels), 1.0, form=form, **options)
    generator, noise = torch.Generator().manual_seed(2), draw(len(labels), 2, seed=1)
    return sampling_loop(term(exact_denoiser()), scheduler, noise, None, steps, generator=generator)


def error(samples):
    """Wasserstein-2 from each component, axis by axis, in its deviations; the mean over the classes."""
    distances = []
    for k, own in enumerate(samples.chunk(3)):
        ranks = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
        exact = MIXTURE.means[k] + MIXTURE.deviations[k] * torch.special.ndtri(ranks)[:, None]
        distances.append((own.sort(0).values - exact).square().mean().sqrt() / MIXTURE.deviations[k])
    return float(sum(distances) / 3)


def errors(steps, count, variance_type, **options):
    labels = torch.arange(3).repeat_interleave(count)
    return [error(guided("mean_shift", each, labels, variance_type, **options)) for each in steps]


@pytest.mark.parametrize("at", ["sample", "mean"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_more_steps_come_nearer(variance_type, at):
    few, some, many = errors([25, 50, 250], 1000, variance_type, at=at)
    assert many < some / 2 < few / 2
    assert many < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_it_converges_to_the_true_conditional(variance_type):
    """At 1000 steps it is as near the conditional as exact draws of it, but for a factor of 2."""
    labels = torch.arange(3).repeat_interleave(4096)
    exact = MIXTURE.means[labels] + draw(len(labels), 2, seed=5) * MIXTURE.deviations[labels, None]
    floor = error(exact)
    few, some, many = errors([50, 250, 1000], 4096, variance_type)
    assert few > 2 * some > 2 * many
    assert many < 2 * floor


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_the_two_forms_draw_the_same_to_first_order(variance_type):
    """From the same noise, their samples differ by O(1 / steps): a tenth of it at ten times the steps."""
    labels = torch.arange(3).repeat_interleave(200)

    def apart(steps):
        forms = [guided(form, steps, labels, variance_type) for form in ("score", "mean_shift")]
        return float((forms[0] - forms[1]).norm())

    assert apart(300) < apart(30) / 5


@pytest.mark.parametrize("place", [0.25, 0.5, 0.75])
def test_what_they_move_one_step_by_agrees_to_first_order(place):
    """The ratio of the moves goes to 1 as 1 / steps: (ratio - 1) steps goes to a limit."""
    labels, excess = torch.tensor([0, 1, 2, 0, 1, 2]), []
    for steps in (50, 100, 250, 1000):
        scheduler = GuidedDDPMScheduler(timestep_spacing="linspace", clip_sample=False)
        scheduler.set_timesteps(steps)
        index = int(place * steps)
        timestep, sample = scheduler.timesteps[index], draw(6, 2)
        level, following = noise_level(scheduler, timestep), next_noise_level(scheduler, index)
        x0 = exact_denoiser()(sample, level)
        base, _ = scheduler.posterior(x0, sample, timestep)
        moves = {}
        for form in ("score", "mean_shift"):
            step = Step(sample=sample, level=level, next_level=following)
            term = ClassifierGuidance(exact_log_prob(labels), 1.0, form=form)
            shifted = term(exact_denoiser()).run(step).x0
            moves[form] = scheduler.posterior(shifted, sample, timestep)[0] - base
        ratio = moves["score"].norm() / moves["mean_shift"].norm()
        excess.append(float(ratio - 1) * steps)
    assert all(each == pytest.approx(excess[-1], rel=0.3) for each in excess[:-1]) and excess[-1] > 0
    assert excess[-2] == pytest.approx(excess[-1], rel=0.06)
