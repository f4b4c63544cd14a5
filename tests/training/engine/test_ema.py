"""The averaged weights: their half-life, ramp-up, state and memory."""

import pytest
import torch
from torch import nn

from guided_diffusers.training.engine.ema import ExponentialMovingAverage


def scalar(value):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def weight(average):
    return average.modules["m"].weight.item()


@pytest.mark.parametrize("images", [1, 8, 250])
def test_after_a_half_life_half_of_the_old_weights_is_left_whatever_the_batch(images):
    module = scalar(1.0)
    average = ExponentialMovingAverage({"m": module}, half_life_images=1000, ramp_up=None)
    nn.init.constant_(module.weight, 0.0)
    for seen in range(images, 3000 + 1, images):
        average.update(seen, images)
    assert weight(average) == pytest.approx(0.5**3, rel=1e-4)


def test_the_average_is_the_closed_form_of_its_recursion():
    module = scalar(0.0)
    average = ExponentialMovingAverage({"m": module}, half_life_images=30, ramp_up=None)
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    for step, value in enumerate(values, start=1):
        nn.init.constant_(module.weight, value)
        average.update(10 * step, 10)
    decay = 0.5 ** (10 / 30)
    expected = sum((1 - decay) * decay ** (49 - step) * value for step, value in enumerate(values))
    assert weight(average) == pytest.approx(expected, abs=1e-6)


def test_ramp_up_limits_the_half_life_to_a_fraction_of_the_images_seen():
    average = ExponentialMovingAverage({"m": scalar(0.0)}, half_life_images=1000, ramp_up=0.1)
    assert average.decay(images_seen=100, images=10) == pytest.approx(0.5)  # half-life 10
    assert average.decay(images_seen=1_000_000, images=10) == pytest.approx(0.5**0.01)


def test_a_half_life_of_zero_follows_the_weights():
    module = scalar(1.0)
    average = ExponentialMovingAverage({"m": module}, half_life_images=0)
    nn.init.constant_(module.weight, 5.0)
    average.update(1, 1)
    assert weight(average) == 5.0


def test_the_copies_are_in_evaluation_mode_and_the_modules_are_left_alone():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    average = ExponentialMovingAverage({"m": module}, half_life_images=10, ramp_up=None)
    copied = average.modules["m"]
    assert not copied.training and not any(p.requires_grad for p in copied.parameters())
    assert module.training and all(p.requires_grad for p in module.parameters())
    module(torch.randn(4, 2))
    average.update(10, 10)
    assert copied[1].num_batches_tracked == 1  # integers are copied
    torch.testing.assert_close(copied[1].running_mean, module[1].running_mean / 2)  # floats averaged from 0
