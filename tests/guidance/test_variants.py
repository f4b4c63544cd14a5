"""The variants of classifier-free guidance: their limits, what defines them, their state, their batches."""

import pytest
import torch
from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance
from laws.exact import draw, exact_denoiser, level_at

from guided_diffusers import GuidedDDIMScheduler, from_denoised, sampling_loop
from guided_diffusers.guidance import (
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFreeGuidance,
    Guidance,
    ProjectedGuidance,
    RescaledGuidance,
    Step,
    TangentialGuidance,
)
from guided_diffusers.guidance.cfg_zero_star import velocity_type

LABELS = torch.tensor([0, 1, 2, 0])
PLAIN_LIMITS = [
    RescaledGuidance(3.0, rescale=0.0, prediction_type="epsilon"),
    ProjectedGuidance(3.0, parallel=1.0, momentum=0.0),
    CFGPlusPlus(0.6),
]


def images(labels):
    """An exact-looking denoiser of "images" (batch, 2, 4, 4): smooth in x_t, different for each class."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(4, 2, 2, generator=generator, dtype=torch.float64)
    offsets = torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)

    def denoise(sample, level, condition):
        chosen = torch.full_like(labels, 3) if condition is None else condition
        mixed = torch.einsum("boc,bchw->bohw", weights[chosen], sample) + offsets[chosen]
        return torch.tanh(mixed) * level.alpha

    return denoise


def step_at(ratio=0.7, next_ratio=0.3, **kwargs):
    sample = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    following = level_at(next_ratio)
    return Step(sample=sample, level=level_at(ratio), next_level=following, condition=LABELS, **kwargs)


def guided(term, step, denoiser=None):
    return term(denoiser or images(LABELS)).run(step).x0


@pytest.mark.parametrize("term", PLAIN_LIMITS, ids=lambda term: type(term).__name__)
def test_at_its_limit_a_variant_is_plain_guidance(term):
    step = step_at()
    rho = step.next_level.noise_to_signal / step.level.noise_to_signal
    gamma = 0.6 / (1 - rho).item() if isinstance(term, CFGPlusPlus) else 3.0
    torch.testing.assert_close(
        guided(term, step), guided(ClassifierFreeGuidance(gamma), step), rtol=0, atol=1e-12
    )


def test_rescaled_output_has_the_conditional_outputs_deviation():
    step = step_at(prediction_type="v_prediction")
    own = images(LABELS)(step.sample, step.level, LABELS)
    x0 = guided(RescaledGuidance(6.0, rescale=1.0), step)
    conditional = from_denoised(own, step.sample, step.level, "v_prediction")
    rescaled = from_denoised(x0, step.sample, step.level, "v_prediction")
    torch.testing.assert_close(rescaled.std((1, 2, 3)), conditional.std((1, 2, 3)), rtol=1e-12, atol=0)
    plain = guided(ClassifierFreeGuidance(6.0), step)
    raw = from_denoised(plain, step.sample, step.level, "v_prediction")
    cosine = torch.cosine_similarity(rescaled.flatten(1), raw.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_rescaling_needs_to_know_the_output():
    with pytest.raises(ValueError, match="prediction_type"):
        guided(RescaledGuidance(3.0), step_at())


def test_projected_guidance_is_across_the_conditional_prediction():
    step = step_at()
    own = images(LABELS)(step.sample, step.level, LABELS)
    shift = guided(ProjectedGuidance(4.0, parallel=0.0, momentum=0.0), step) - own
    assert (shift * own).sum((1, 2, 3)).abs().max() < 1e-12
    assert shift.square().sum((1, 2, 3)).min() > 0.1


def test_projected_guidance_has_no_longer_a_difference_than_its_threshold():
    step = step_at()
    own = images(LABELS)(step.sample, step.level, LABELS)
    term = ProjectedGuidance(2.0, parallel=1.0, momentum=0.0, norm_threshold=0.5)
    norms = (guided(term, step) - own).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5))


def test_momentum_adds_earlier_differences_of_the_same_run_only():
    term = ProjectedGuidance(3.0, parallel=1.0, momentum=-0.5)
    step = step_at()
    first, second = guided(term, step), guided(term, step)
    own = images(LABELS)(step.sample, step.level, LABELS)
    torch.testing.assert_close(second - own, 0.5 * (first - own))
    assert torch.equal(guided(term, step_at()), first)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_cfg_plus_plus_under_ddim_goes_on_with_the_unconditional_noise(lam):
    step = step_at()
    conditional = images(LABELS)(step.sample, step.level, LABELS)
    null = images(LABELS)(step.sample, step.level, None)
    x0 = null + lam * (conditional - null)
    noise = (step.sample - step.level.alpha * null) / step.level.sigma
    expected = step.next_level.alpha * x0 + step.next_level.sigma * noise
    ours = guided(CFGPlusPlus(lam), step)
    own_noise = (step.sample - step.level.alpha * ours) / step.level.sigma
    torch.testing.assert_close(
        step.next_level.alpha * ours + step.next_level.sigma * own_noise, expected, rtol=0, atol=1e-12
    )


def test_cfg_plus_plus_needs_the_next_level():
    with pytest.raises(ValueError, match="next noise level"):
        CFGPlusPlus(0.5)(exact_denoiser())(draw(4, 2), level_at(0.7), LABELS)


@pytest.mark.parametrize("ratio", [0.7, 0.9], ids=["twice at a level", "up"])
def test_cfg_plus_plus_refuses_a_step_that_does_not_lower_the_noise(ratio):
    with pytest.raises(ValueError, match="to no less.*every step lowers it"):
        guided(CFGPlusPlus(0.5), step_at(0.7, ratio))


def test_cfg_zero_star_fits_the_unconditional_velocity():
    step = step_at()
    kind = velocity_type(step.level)
    conditional, null = (
        from_denoised(images(LABELS)(step.sample, step.level, c), step.sample, step.level, kind)
        for c in (LABELS, None)
    )
    velocity = from_denoised(guided(CFGZeroStar(2.5), step), step.sample, step.level, kind)
    for row in range(4):
        c, u = conditional[row].flatten(), null[row].flatten()
        s = torch.linalg.lstsq(u[:, None], c[:, None]).solution.item()  # the best multiple of u
        torch.testing.assert_close(velocity[row].flatten(), (1 - 2.5) * s * u + 2.5 * c)


def test_cfg_zero_star_starts_with_no_velocity():
    term, step = CFGZeroStar(2.5, zero_init_steps=1), step_at()
    kind = velocity_type(step.level)
    first = from_denoised(guided(term, step), step.sample, step.level, kind)
    assert first.abs().max() < 1e-12
    torch.testing.assert_close(guided(term, step), guided(CFGZeroStar(2.5), step_at()))


@pytest.mark.parametrize(
    ("alpha", "sigma", "kind"),
    [(0.8, 0.6, "v_prediction"), (0.3, 0.7, "flow_prediction"), (1.0, 4.0, "epsilon")],
)
def test_the_velocity_is_the_derivative_along_the_process(alpha, sigma, kind):
    from guided_diffusers import NoiseLevel

    level = NoiseLevel(alpha=alpha, sigma=sigma)
    assert velocity_type(level) == kind
    x0, noise = draw(4, 2), draw(4, 2, seed=9)
    tangent = {"v_prediction": (-sigma, alpha), "flow_prediction": (-1, 1), "epsilon": (0, 1)}[kind]
    expected = tangent[0] * x0 + tangent[1] * noise
    torch.testing.assert_close(from_denoised(x0, alpha * x0 + sigma * noise, level, kind), expected)


def test_tangential_damping_is_the_papers_projection():
    """By a singular value decomposition, as diffusers' guider has it."""
    step = step_at(prediction_type="v_prediction")
    conditional, null = (
        from_denoised(images(LABELS)(step.sample, step.level, c), step.sample, step.level, "v_prediction")
        for c in (LABELS, None)
    )
    expected = normalized_guidance(conditional, null, 3.0)
    ours = from_denoised(guided(TangentialGuidance(3.0), step), step.sample, step.level, "v_prediction")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


VARIANTS = [
    TangentialGuidance(3.0, prediction_type="epsilon"),
    RescaledGuidance(3.0, rescale=0.7, prediction_type="epsilon"),
    ProjectedGuidance(3.0, norm_threshold=2.0),
    CFGPlusPlus(0.6),
    CFGZeroStar(3.0),
]


@pytest.mark.parametrize("term", VARIANTS, ids=lambda term: type(term).__name__)
class TestEvery:
    def test_is_the_same_in_any_batch(self, term):
        whole = guided(term, step_at())
        for row in range(4):
            step = step_at()
            one = Step(
                sample=step.sample[row : row + 1],
                level=step.level,
                next_level=step.next_level,
                condition=LABELS[row : row + 1],
            )
            alone = guided(term, one, images(LABELS[row : row + 1]))
            torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-12)

    def test_goes_to_a_configuration_and_back(self, term):
        assert Guidance.from_config(term.to_config()) == term

    def test_takes_a_scale_a_sample_and_an_interval(self, term):
        from dataclasses import replace

        scales = (0.5, 2.0, 3.0, 4.0)
        whole = guided(replace(term, scale=scales), step_at())
        for row, scale in enumerate(scales):
            alone = guided(replace(term, scale=scale), step_at())
            torch.testing.assert_close(whole[row], alone[row], rtol=0, atol=1e-12)
        step = step_at()
        outside = guided(replace(term, interval=(10.0, 20.0)), step)
        assert torch.equal(outside, images(LABELS)(step.sample, step.level, LABELS))

    def test_runs_twice_alike_in_the_loop(self, term):
        scheduler = GuidedDDIMScheduler(clip_sample=False, prediction_type="epsilon")
        noise = step_at().sample
        first, second = (
            sampling_loop(term(images(LABELS)), scheduler, noise, condition=LABELS, num_inference_steps=5)
            for _ in range(2)
        )
        assert torch.equal(first, second) and first.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RescaledGuidance(2.0, rescale=1.5), "rescale"),
        (lambda: ProjectedGuidance(2.0, momentum=1.0), "momentum"),
        (lambda: ProjectedGuidance(2.0, norm_threshold=0.0), "norm_threshold"),
        (lambda: ProjectedGuidance(2.0, parallel=float("nan")), "parallel"),
        (lambda: CFGZeroStar(2.0, zero_init_steps=-1), "zero_init_steps"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
