"""Counted compute: forwards, backwards and FLOPs against what the shapes say."""

import pytest
import torch
from torch import nn

from guided_diffusers.evaluation.compute import count_compute, networks_of


def test_a_convolution_costs_what_its_shape_says():
    network = nn.Conv2d(3, 8, 3, padding=1)
    images = torch.randn(4, 3, 10, 10)
    cost = count_compute({"net": network}, lambda: network(network(images)[:, :3]), images=4)
    assert cost.forwards == {"net": 2.0} and cost.backwards == {}
    assert cost.flops == 2 * (2 * 3 * 8 * 9 * 100)  # two FLOPs a multiply-add, twice


def test_backwards_are_counted_where_they_happen():
    network, other = nn.Linear(6, 6), nn.Linear(6, 6)

    def run():
        x = torch.randn(5, 6, requires_grad=True)
        with torch.no_grad():
            other(x)
        torch.autograd.grad(network(x).sum(), x)

    cost = count_compute({"net": network, "other": other}, run, images=5)
    assert cost.forwards == {"net": 1.0, "other": 1.0} and cost.backwards == {"net": 1.0}


def test_attention_is_counted():
    q = torch.randn(1, 1, 7, 4)
    cost = count_compute({}, lambda: nn.functional.scaled_dot_product_attention(q, q, q), images=1)
    assert cost.flops == 2 * (2 * 7 * 7 * 4)


def test_an_autoencoder_is_its_two_halves():
    half = nn.Module()
    half.encoder, half.decoder = nn.Linear(1, 1), nn.Linear(1, 1)
    assert set(networks_of({"vae": half, "unet": nn.Linear(1, 1), "scheduler": 3})) == {
        "vae.encoder",
        "vae.decoder",
        "unet",
    }


def test_no_images_no_cost_an_image():
    with pytest.raises(ValueError, match="images is 0"):
        count_compute({}, lambda: None, images=0)
