"""The network is called once a step; what a sample becomes does not depend on the batch it is in."""

from __future__ import annotations

import diffusers
import pytest
import torch
from laws.exact import draw
from laws.mixture import MixtureClassifier, MixtureNetwork, levels_of, log_prob_of
from torch import nn

from guided_diffusers import Condition, GuidedDDIMScheduler, GuidedDDPMScheduler, ModelDenoiser, sampling_loop
from guided_diffusers.core.randomness import generator_for, randn_for
from guided_diffusers.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidanceInterval,
)

STEPS = 10
LABELS = torch.tensor([0, 1, 2, 0])
CONDITION = Condition({"class_labels": LABELS}, {"class_labels": torch.full_like(LABELS, -1)})


def ddim():
    scheduler = GuidedDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    return scheduler


def counted():
    network = MixtureNetwork(levels_of(ddim(), "timestep"), "epsilon")
    return network, ModelDenoiser(network, "epsilon")


def run(denoiser, condition=CONDITION):
    return sampling_loop(denoiser, ddim(), draw(4, 2), condition, STEPS)


class TestCalls:
    def test_unguided_it_is_called_once_a_step_with_the_batch(self):
        network, denoiser = counted()
        run(denoiser)
        assert network.batches == [4] * STEPS

    @pytest.mark.parametrize("gamma", [1.0, [1.0, 1.0, 1.0, 1.0]])
    def test_a_neutral_scale_costs_nothing(self, gamma):
        network, denoiser = counted()
        run(ClassifierFreeGuidance(gamma)(denoiser))
        assert network.batches == [4] * STEPS

    @pytest.mark.parametrize("gamma", [0.0, 5.0, [1.0, 1.0, 1.0, 2.0]])
    def test_guidance_doubles_the_batch_of_the_same_single_call(self, gamma):
        network, denoiser = counted()
        run(ClassifierFreeGuidance(gamma)(denoiser))
        assert network.batches == [8] * STEPS

    def test_only_inside_the_interval(self):
        ratios = [float(ddim().noise_level(t).noise_to_signal) for t in ddim().timesteps]
        interval = GuidanceInterval(ratios[6], ratios[3])  # the lower limit is excluded, the upper included
        network, denoiser = counted()
        run(ClassifierFreeGuidance(5.0, interval)(denoiser))
        assert network.batches == [4, 4, 4, 8, 8, 8, 4, 4, 4, 4]

    def test_two_terms_that_need_the_null_ask_for_it_once(self):
        network, denoiser = counted()
        terms = ClassifierFreeGuidance(2.0) + ClassifierFreeGuidance(3.0, GuidanceInterval(0.0, 1.0))
        run(terms(denoiser))
        assert network.batches == [8] * STEPS

    def test_a_weak_network_is_asked_once_a_step_beside_it(self):
        (network, denoiser), (weak, weak_denoiser) = counted(), counted()
        run((ClassifierFreeGuidance(2.0) + AutoGuidance(weak_denoiser, 1.5))(denoiser))
        assert network.batches == [8] * STEPS and weak.batches == [4] * STEPS

    def test_a_classifier_needs_no_graph_through_the_denoiser(self):
        network, denoiser = counted()
        term = ClassifierGuidance(log_prob_of(MixtureClassifier(network.levels), LABELS), 1.0)
        run(term(denoiser))
        with torch.enable_grad():
            level = ddim().noise_level(ddim().timesteps[0])
            assert not term(denoiser)(draw(4, 2), level, CONDITION).requires_grad
        assert network.batches == [4] * (STEPS + 1)
        assert network.with_graph == [False] * (STEPS + 1)

    def test_through_the_predicted_x0_the_graph_is_kept_while_active(self):
        network, denoiser = counted()

        def log_prob(x0, level, condition):
            return -x0.square().sum(1)

        interval = GuidanceInterval(0.0, 1.0)
        run(ClassifierGuidance(log_prob, 1.0, interval, through="denoised")(denoiser))
        active = [ddim().noise_level(t) in interval for t in ddim().timesteps]
        assert 0 < sum(active) < STEPS
        assert network.with_graph == active and network.batches == [4] * STEPS


class Elementwise(nn.Module):
    """A network without any mixing of elements: its arithmetic is the same in every batch."""

    def forward(self, sample, timestep, class_labels=None):
        return torch.tanh(sample * (1 + timestep / 1000) + class_labels[:, None])


@pytest.mark.parametrize(
    ("scheduler", "network", "tolerance"),
    [
        (lambda: GuidedDDPMScheduler(clip_sample=False), Elementwise, 0.0),
        (diffusers.EulerAncestralDiscreteScheduler, Elementwise, 0.0),
        (
            lambda: GuidedDDPMScheduler(clip_sample=False),
            lambda: counted()[0],
            1e-12,
        ),  # softmax and sums: the order may follow the shape
    ],
    ids=["GuidedDDPM", "EulerAncestral", "GuidedDDPM, mixture"],
)
def test_with_a_generator_a_sample_the_batch_does_not_matter(scheduler, network, tolerance):
    guidance = ClassifierFreeGuidance(3.0)

    def sampled(indices):
        labels = LABELS[indices]
        condition = Condition({"class_labels": labels}, {"class_labels": torch.full_like(labels, -1)})
        generators = [generator_for(7, index) for index in indices]
        noise = randn_for(8, indices, (2,), dtype=torch.float64)
        denoiser = guidance(ModelDenoiser(network(), "epsilon"))
        return sampling_loop(denoiser, scheduler(), noise, condition, STEPS, generator=generators)

    together = sampled([0, 1, 2, 3])
    assert together.unique(dim=0).shape == (4, 2)
    for part in ([0], [2, 1], [3, 0, 1]):
        torch.testing.assert_close(sampled(part), together[part], rtol=0, atol=tolerance)
