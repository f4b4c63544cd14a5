import math

import pytest
import torch
from laws.exact import draw, exact_denoiser, exact_log_prob, level_at

from guided_diffusers import Condition, NoiseLevel
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance, Step

LABELS = torch.tensor([0, 1, 2, 0])


class TestClassifierFree:
    def test_it_extrapolates_from_the_null_condition(self):
        def denoise(sample, level, condition):
            return condition.positive["value"] * torch.ones_like(sample)

        condition = Condition({"value": 3.0}, {"value": 1.0})
        x0 = ClassifierFreeGuidance(2.5)(denoise)(torch.zeros(2, 2), level_at(1.0), condition)
        assert x0.unique().item() == 1 + 2.5 * (3 - 1)

    def test_any_object_may_be_the_condition(self):
        class Label:
            def __init__(self, labels, null=None):
                self.labels, self.null = labels, null

        def denoise(sample, level, condition):
            return exact_denoiser()(sample, level, condition.labels)

        null = Label(torch.full_like(LABELS, -1))
        sample, level = draw(4, 2), level_at(0.7)
        ours = ClassifierFreeGuidance(3.0)(denoise)(sample, level, Label(LABELS, null))
        expected = ClassifierFreeGuidance(3.0)(exact_denoiser())(sample, level, LABELS)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


class TestAutoGuidanceUnderTheNullCondition:
    def test_it_extrapolates_from_the_weak_unconditional_model(self):
        def weak(sample, level, condition):
            return (5.0 if condition is None else 7.0) * torch.ones_like(sample)

        def strong(sample, level, condition):
            return 8.0 * torch.ones_like(sample)

        sample, level = torch.zeros(4, 2), level_at(1.0)
        x0 = AutoGuidance(weak, 2.0, null=True)(strong)(sample, level, LABELS)
        assert x0.unique().item() == 5 + 2 * (8 - 5)
        assert AutoGuidance(weak, 2.0)(strong)(sample, level, LABELS).unique().item() == 7 + 2 * (8 - 7)


class TestClassifier:
    def test_it_is_the_papers_form_on_epsilon(self):
        """epsilon - s sigma g (Dhariwal and Nichol, algorithm 2)."""
        sample, level, s = draw(4, 2), level_at(0.7), 2.2
        x0 = exact_denoiser()(sample, level)
        epsilon = (sample - level.alpha * x0) / level.sigma
        moving = sample.clone().requires_grad_()
        gradient = torch.autograd.grad(exact_log_prob(LABELS)(moving, level).sum(), moving)[0]
        guided = ClassifierGuidance(exact_log_prob(LABELS), s)(exact_denoiser())(sample, level)
        expected = epsilon - s * level.sigma * gradient
        torch.testing.assert_close(
            (sample - level.alpha * guided) / level.sigma, expected, rtol=0, atol=1e-12
        )

    def test_it_receives_sample_level_and_condition(self):
        sample, level = draw(4, 2), level_at(0.7, timestep=torch.tensor(31), input_scale=0.5)
        received = []

        def log_prob(*args):
            received.extend(args)
            return args[0].sum(1)

        ClassifierGuidance(log_prob, 1.0)(exact_denoiser())(sample, level, LABELS)
        assert torch.equal(received[0], sample) and received[1] is level and received[2] is LABELS
        assert received[0].requires_grad and not sample.requires_grad

    def test_through_denoised_it_receives_the_predicted_x0(self):
        sample, level, received = draw(4, 2), level_at(0.7), []

        def log_prob(x0, level, condition):
            received.append(x0)
            return x0.sum(1)

        ClassifierGuidance(log_prob, 1.0, through="denoised")(exact_denoiser())(sample, level, LABELS)
        torch.testing.assert_close(received[0].detach(), exact_denoiser()(sample, level, LABELS))

    def test_two_terms_through_denoised_share_one_graph(self):
        sample, level = draw(4, 2), level_at(0.7)
        terms = [
            ClassifierGuidance(exact_log_prob(LABELS), scale, through="denoised") for scale in (1.0, 2.5)
        ]
        both = (terms[0] + terms[1])(exact_denoiser())(sample, level)
        apart = [term(exact_denoiser())(sample, level) for term in terms]
        expected = apart[0] + apart[1] - exact_denoiser()(sample, level)
        torch.testing.assert_close(both, expected, rtol=0, atol=1e-12)

    def test_it_works_under_no_grad_and_in_half_precision_inputs(self):
        guided = ClassifierGuidance(exact_log_prob(LABELS), 1.0)(exact_denoiser())
        sample, level = draw(4, 2), level_at(0.7)
        with torch.no_grad():
            x0 = guided(sample, level)
        torch.testing.assert_close(x0, exact_denoiser()(sample, level, LABELS), rtol=0, atol=1e-12)
        half = guided(sample.half(), level)
        torch.testing.assert_close(half.double(), x0, rtol=0, atol=0.05)

    def test_at_pure_noise_it_is_left_out(self):
        guided = ClassifierGuidance(lambda sample, level, condition: -sample.square().sum(1), 2.0)(
            exact_denoiser()
        )
        level = NoiseLevel(alpha=torch.tensor([0.0, 0.6]), sigma=torch.tensor([1.0, 0.8]))

        def denoise(sample, level, condition):
            return torch.zeros_like(sample)

        x0 = ClassifierGuidance(lambda sample, level, condition: sample.sum(1), 2.0)(denoise)(
            torch.ones(2, 3), level
        )
        assert x0[0].tolist() == [0.0] * 3
        torch.testing.assert_close(x0[1], torch.full((3,), 2 * 0.64 / 0.6))
        assert guided(draw(2, 2), NoiseLevel(alpha=0.0, sigma=1.0)).isfinite().all()

    @pytest.mark.parametrize(("name", "value"), [("form", "both"), ("through", "x0"), ("at", "x0")])
    def test_unknown_options(self, name, value):
        with pytest.raises(ValueError, match=f"{name} is '{value}'; allowed: '"):
            ClassifierGuidance(exact_log_prob(LABELS), 1.0, **{name: value})

    def test_options_that_exclude_each_other(self):
        with pytest.raises(ValueError, match="at is 'mean' and through is 'denoised'; allowed: at='sample'"):
            ClassifierGuidance(exact_log_prob(LABELS), 1.0, at="mean", through="denoised")

    @pytest.mark.parametrize("scale", [math.nan, math.inf, [1.0, math.nan]])
    def test_a_scale_that_is_no_number(self, scale):
        with pytest.raises(ValueError, match="scale is .*(nan|inf).*; allowed: finite numbers"):
            ClassifierGuidance(exact_log_prob(LABELS), scale)

    def test_a_classifier_that_gives_all_classes(self):
        guided = ClassifierGuidance(lambda sample, level, condition: sample, 1.0)(exact_denoiser())
        with pytest.raises(ValueError, match=r"log_prob has shape \(4, 2\) .* one value a sample"):
            guided(draw(4, 2), level_at(1.0))


class TestTheCap:
    SLOPES = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0], [-30.0, 40.0]], dtype=torch.float64)

    def shift(self, level, **kwargs):
        def log_prob(sample, level, condition):  # of x_t / alpha, so that every process has the same
            return (self.SLOPES * sample / level.alpha).sum(1)

        guided = ClassifierGuidance(log_prob, **kwargs)(lambda sample, level, condition: 0 * sample)
        return guided(draw(4, 2), level)

    def test_a_longer_gradient_is_shortened_before_the_scale_and_a_shorter_one_is_as_it_was(self):
        level = level_at(0.5)  # sigma g is half the slopes: of norm 0.25, 2.5, 0 and 25
        capped, free = (self.shift(level, scale=3.0, max_gradient_norm=c) for c in (1.0, None))
        torch.testing.assert_close(capped[[0, 2]], free[[0, 2]], rtol=0, atol=0)
        torch.testing.assert_close(capped[[1, 3]], free[[1, 3]] / torch.tensor([[2.5], [25.0]]))
        epsilon = level.alpha * capped / level.sigma  # what the score form subtracts from epsilon
        torch.testing.assert_close(epsilon.norm(dim=1)[[1, 3]], torch.full((2,), 3.0, dtype=torch.float64))

    def test_it_is_the_same_number_in_every_process(self):
        preserving = self.shift(level_at(0.5), scale=1.0, max_gradient_norm=1.0)
        exploding = self.shift(NoiseLevel(alpha=1.0, sigma=0.5), scale=1.0, max_gradient_norm=1.0)
        torch.testing.assert_close(preserving, exploding)

    @pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, True, "1"])
    def test_limits_that_are_none(self, limit):
        with pytest.raises(ValueError, match="max_gradient_norm is .*; allowed: None, or a number above 0"):
            ClassifierGuidance(exact_log_prob(LABELS), 1.0, max_gradient_norm=limit)


class TestAtTheMean:
    def seen_at(self, next_level, level=None, **kwargs):
        seen, sample, level = [], draw(4, 2), level or level_at(1.0)

        def log_prob(sample, level, condition):
            seen.append((sample.detach(), level))
            return -sample.square().sum(1)

        step = Step(sample=sample, level=level, next_level=next_level)
        x0 = ClassifierGuidance(log_prob, 1.0, at="mean")(lambda x, *_: 0.25 * x).run(step).x0
        return sample, *seen[0], x0

    def test_the_classifier_sees_the_mean_and_the_next_level(self):
        following = level_at(0.5, timestep=3)
        sample, seen, level, x0 = self.seen_at(following)
        r = 0.25  # (0.5 / 1)^2
        alpha, alpha_next = level_at(1.0).alpha, following.alpha
        expected = alpha_next * (1 - r) * 0.25 * sample + r * alpha_next / alpha * sample
        torch.testing.assert_close(seen, expected)
        assert level is following
        factor = level_at(1.0).sigma ** 2 / alpha  # the form's coefficients stay its own
        torch.testing.assert_close(x0, 0.25 * sample - 2 * factor * expected)

    @pytest.mark.parametrize("last", [NoiseLevel(alpha=1.0, sigma=0.0), level_at(0.1)], ids=["clean", "not"])
    def test_the_last_step_has_no_timestep_and_is_taken_at_the_sample(self, last):
        sample, seen, level, _ = self.seen_at(last)
        assert torch.equal(seen, sample) and level.noise_to_signal == level_at(1.0).noise_to_signal

    @pytest.mark.parametrize(
        "following", [level_at(1.5, timestep=3), NoiseLevel(alpha=0, sigma=1, timestep=3)]
    )
    def test_a_step_to_more_noise_has_no_mean(self, following):
        with pytest.raises(ValueError, match="sigma / alpha of the level and of the next one are .*mean"):
            self.seen_at(following)


class TestAuto:
    def test_the_weak_network_gets_the_same_condition(self):
        received = []

        def weak(sample, level, condition):
            received.append(condition)
            return 0.5 * sample

        AutoGuidance(weak, 2.0)(exact_denoiser())(draw(4, 2), level_at(1.0), LABELS)
        assert len(received) == 1 and received[0] is LABELS

    def test_scale_1_asks_nothing(self):
        def never(*args):
            raise AssertionError("asked at the neutral scale")

        sample, level = draw(4, 2), level_at(1.0)
        guided = AutoGuidance(never, 1.0)(exact_denoiser())
        assert torch.equal(guided(sample, level, LABELS), exact_denoiser()(sample, level, LABELS))
