import numpy as np
import pytest
import torch
from laws.exact import draw, exact_denoiser, level_at
from laws.mixture import MIXTURE

from guided_diffusers import GuidedDDIMScheduler, NoiseLevel, sampling_loop
from guided_diffusers.core.randomness import randn_for
from guided_diffusers.guidance import ClassifierFreeGuidance

LABELS_WIDE, GAP, HEADER = 190, 4, 23


@pytest.fixture
def study(load_script):
    return load_script("studies/fashion_32/process_pictures")


def tiles(picture, size, rows, columns):
    """The tiles of a labelled grid with a header, `(rows, columns, size, size)` of the red channel."""
    array = np.asarray(picture)[HEADER + GAP :, LABELS_WIDE + GAP :, 0]
    return np.stack(
        [
            [array[row * (size + GAP) :, column * (size + GAP) :][:size, :size] for column in range(columns)]
            for row in range(rows)
        ]
    )


def shades(x):
    return ((x.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(int)


def test_the_forward_process_is_alpha_x0_plus_sigma_eps(study):
    x0 = draw(2, 1, 16, 16).clamp(-1, 1)
    levels = [NoiseLevel(alpha=1.0, sigma=0.0), level_at(0.5), NoiseLevel(alpha=1.0, sigma=2.0)]
    shown = tiles(study.forward_process(x0, levels, seed=3, min_pixels=16), 16, 2, 3)
    noise = randn_for(3, [0, 1], (1, 16, 16), dtype=torch.float64)
    for column, level in enumerate(levels):
        noisy = (level.alpha * x0 + level.sigma * noise) / torch.hypot(level.alpha, level.sigma)
        np.testing.assert_allclose(shown[:, column], shades(noisy[:, 0]), atol=1)


def test_the_reverse_process_is_that_of_the_sampling_loop(study):
    scheduler, noise = GuidedDDIMScheduler(clip_sample=False), draw(1, 1, 16, 16)

    def shrink(sample, level, condition):
        return condition * torch.tanh(sample)

    guided = ClassifierFreeGuidance(1.0)(shrink)
    estimates, samples = [], []

    def keep(index, timestep, sample):
        samples.append(sample)
        return sample

    def watched(sample, level, condition):
        estimates.append(shrink(sample, level, condition))
        return estimates[-1]

    result = sampling_loop(watched, scheduler, noise, 0.5, 7, callback=keep)
    arguments = {"num_inference_steps": 7, "columns": 3, "min_pixels": 16}
    picture = study.reverse_process(guided, scheduler, noise, 0.5, **arguments)
    shown = tiles(picture, 16, 2, 4)
    np.testing.assert_allclose(shown[0, 0], shades(noise[0, 0]), atol=1)
    np.testing.assert_allclose(shown[0, 1], shades(samples[2][0, 0]), atol=1)
    np.testing.assert_allclose(shown[0, 3], shades(result[0, 0]), atol=1)
    for column, step in enumerate((0, 3, 6)):
        np.testing.assert_allclose(shown[1, column], shades(estimates[step][0, 0]), atol=1)


def test_latents_are_decoded(study):
    latents = draw(1, 4, 8, 8)

    def decode(z):
        return z.mean(1, keepdim=True).repeat_interleave(2, 2).repeat_interleave(2, 3)

    picture = study.forward_process(latents, [NoiseLevel(alpha=1.0, sigma=0.0)], decode=decode, min_pixels=16)
    np.testing.assert_allclose(tiles(picture, 16, 1, 1)[0, 0], shades(decode(latents)[0, 0]), atol=1)
    with pytest.raises(ValueError, match="latents go through a decoder"):
        study.forward_process(latents, [level_at(1.0)])


def test_the_loss_of_the_exact_denoiser_is_the_variance_that_is_left(study):
    """For a Gaussian N(0, v): Var[x_0 | x_t] = v sigma^2 / (alpha^2 v + sigma^2)."""
    v = 0.6
    x0 = v**0.5 * draw(3000, 2)

    def denoise(sample, level, condition=None):
        return level.alpha * v / (level.alpha**2 * v + level.sigma**2) * sample

    ratios = (0.1, 1.0, 5.0)
    losses = study.losses_by_level(denoise, x0, [level_at(ratio) for ratio in ratios])
    for ratio, loss in zip(ratios, losses, strict=True):
        level = level_at(ratio)
        expected = (v * level.sigma**2 / (level.alpha**2 * v + level.sigma**2)).item()
        assert loss.noise_to_signal == pytest.approx(ratio)
        assert loss.of_x0.value == pytest.approx(expected, rel=0.1)
        assert loss.of_x0.low < loss.of_x0.value < loss.of_x0.high
        assert loss.of_noise.value == pytest.approx(loss.of_x0.value / ratio**2)


def test_a_condition_lowers_the_loss_and_each_level_has_its_own_noise(study):
    labels = torch.arange(300) % 3
    x0 = MIXTURE.means[labels] + MIXTURE.deviations[labels, None] * draw(300, 2)
    levels = [level_at(2.0)] * 2
    told, untold = (study.losses_by_level(exact_denoiser(), x0, levels, known) for known in (labels, None))
    assert told[0].of_x0.high < untold[0].of_x0.low
    assert told[0].of_x0.value != told[1].of_x0.value


def test_the_loss_figure_is_drawn(study):
    losses = study.losses_by_level(exact_denoiser(), draw(20, 2), [level_at(r) for r in (0.1, 1.0, 10.0)])
    picture = np.asarray(study.loss_figure(losses, "a title"))
    blue, orange = (
        (np.abs(picture - np.array(c)).sum(2) < 30).sum() for c in ((31, 119, 180), (255, 127, 14))
    )
    assert picture.shape[2] == 3 and blue > 200 and orange > 200


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda study: study.forward_process(draw(1, 1, 4, 4), []), r"levels is \[\]"),
        (
            lambda study: study.losses_by_level(exact_denoiser(), draw(2, 2), [NoiseLevel(alpha=0, sigma=1)]),
            r"levels\[0\]",
        ),
        (lambda study: study.loss_figure([]), r"losses is \[\]"),
        (
            lambda study: study.reverse_process(exact_denoiser(), GuidedDDIMScheduler(), draw(2, 1, 4, 4)),
            "noise is .*; allowed: one sample",
        ),
    ],
)
def test_errors(study, call, message):
    with pytest.raises(ValueError, match=message):
        call(study)
