"""The classifier of clean images: labels, saving, and its place in classifier guidance."""

import pytest
import torch

from guided_diffusers import Condition, NoiseLevel
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.models import ImageClassifier

ARGUMENTS = {
    "num_classes": 3,
    "in_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "block_out_channels": (4, 8),
    "norm_num_groups": 4,
    "pool_size": 2,
    "id2label": {0: "shirt", 1: "bag", 2: "boot"},
}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return ImageClassifier(**ARGUMENTS).eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_saved_and_loaded_it_says_the_same(classifier, images, tmp_path):
    classifier.save_pretrained(tmp_path)
    again = ImageClassifier.from_pretrained(tmp_path)
    assert all(
        torch.equal(weight, again.state_dict()[name]) for name, weight in classifier.state_dict().items()
    )
    assert again.class_names == {0: "shirt", 1: "bag", 2: "boot"}
    torch.testing.assert_close(again(images), classifier(images), rtol=0, atol=1e-6)


def test_labels_are_indices_names_or_a_condition(classifier, images):
    expected = classifier(images).log_softmax(1)[[0, 1], [2, 1]]
    for labels in (torch.tensor([2, 1]), ["boot", "bag"], Condition({"class_labels": torch.tensor([2, 1])})):
        torch.testing.assert_close(classifier.log_prob(images, None, labels), expected)
    torch.testing.assert_close(classifier.log_prob(images, None, "boot")[0], expected[0])
    half = ImageClassifier(**ARGUMENTS).half()
    assert half.log_prob(images, None, 0).dtype == torch.float32
    for labels, words in (
        (3, "allowed: indices, 0 to 2"),
        ("coat", "'coat'"),
        ([0, 1, 2], "allowed: 1 or 2"),
    ):
        with pytest.raises(ValueError, match=words):
            classifier.log_prob(images, None, labels)
    with pytest.raises(ValueError, match=r"allowed: .* \(batch, 1, height, width\)"):
        classifier(images.expand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="pool_size is 0"):
        ImageClassifier(**{**ARGUMENTS, "pool_size": 0})


def test_it_guides_through_the_predicted_image(classifier, images):
    """A shift of scale s along the gradient raises log p by s |g|^2 to first order."""
    classifier, images = classifier.double(), images.double()
    level = NoiseLevel(alpha=1.0, sigma=1.0, timestep=5)

    def denoiser(sample, level, condition):
        return 0.5 * sample

    labels = torch.tensor([2, 2])
    guided = ClassifierGuidance(classifier.log_prob, 1e-4, through="denoised")(denoiser)
    shift = guided(images, level, labels) - 0.5 * images
    before, after = (classifier.log_prob(x, level, labels) for x in (0.5 * images, 0.5 * images + shift))
    squared = (shift / 1e-4).flatten(1).square().sum(1)  # of the gradient at x_t, half that at x_0
    torch.testing.assert_close(after - before, 2e-4 * squared, rtol=1e-3, atol=0)
