"""The contrastive loss: by hand with repeated captions, and what it is minimal at."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from guided_diffusers.training.tasks.contrastive import contrastive_loss, limit_temperature

OWN = torch.tensor([0, 1, 0, 2, 1, 0])


def directions(count, seed, d=5):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, d, dtype=torch.float64, generator=generator), dim=1)


def by_hand(images, texts, own, temperature):
    """Every caption of the batch a column of its own; targets uniform over the columns of equal captions."""
    logits = temperature * images @ texts[own].T
    total = torch.zeros(len(own), dtype=torch.float64)
    for row in range(len(own)):
        equal = [column for column in range(len(own)) if own[column] == own[row]]
        for column in equal:
            total[row] -= logits[row].log_softmax(0)[column] / len(equal) / 2
            total[row] -= logits[:, row].log_softmax(0)[column] / len(equal) / 2
    return total


@pytest.mark.parametrize("own", [OWN, torch.arange(6)], ids=["repeated", "all different"])
def test_captions_that_repeat_are_positives(own):
    images, texts = directions(6, 0), directions(int(own.max()) + 1, 1)
    temperature = torch.tensor(4.0, dtype=torch.float64)
    ours, hand = contrastive_loss(images, texts, own, temperature), by_hand(images, texts, own, temperature)
    # An image's share of the text-to-image part is its own term here, and its caption's mean there.
    torch.testing.assert_close(ours.mean(), hand.mean(), rtol=1e-12, atol=0)
    if len(texts) == 6:
        torch.testing.assert_close(ours, hand, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_the_targets_by_hand():
    gradients = []
    for loss in (contrastive_loss, by_hand):
        images, texts = directions(6, 0).requires_grad_(), directions(3, 1).requires_grad_()
        value = loss(images, texts, OWN, torch.tensor(4.0, dtype=torch.float64)).mean()
        gradients.append(torch.autograd.grad(value, [images, texts]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_transformers_loss_where_no_caption_repeats():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts = directions(6, 0).float(), directions(6, 1).float()
    ours = contrastive_loss(images, texts, torch.arange(6), torch.tensor(4.0)).mean()
    torch.testing.assert_close(ours, image_text_contrastive_loss(4.0 * texts @ images.T))


def test_its_minimum_is_the_pointwise_mutual_information():
    """Two kinds of images, two captions: free logits tend to log p(image, caption) / (p p) + const."""
    own = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1, 1, 1])  # the first four images are of kind 0
    kind = torch.tensor([0] * 4 + [1] * 6)
    joint = torch.tensor([[3.0, 1.0], [1.0, 5.0]], dtype=torch.float64) / 10
    expected = (joint / joint.sum(0) / joint.sum(1, keepdim=True)).log()
    table = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        # table[kind] @ identity: free logits in the form of embeddings
        value = contrastive_loss(
            table[kind], torch.eye(2, dtype=torch.float64), own, torch.tensor(1.0)
        ).mean()
        value.backward()
        return value

    optimizer.step(closure)
    found = table.detach()
    torch.testing.assert_close(found - found[0, 0], expected - expected[0, 0], rtol=0, atol=1e-5)


def test_under_autocast_it_stays_in_float32():
    images, texts = directions(6, 0).float(), directions(3, 1).float()
    plain = contrastive_loss(images, texts, OWN, torch.tensor(50.0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = contrastive_loss(images, texts, OWN, torch.tensor(50.0))
    assert torch.equal(plain, cast) and cast.dtype == torch.float32


@pytest.mark.parametrize("own", [torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 0]), torch.arange(6)])
def test_captions_that_do_not_fit(own):
    with pytest.raises(ValueError, match="own has .* captions for 6 images"):
        contrastive_loss(directions(6, 0), directions(3, 1), own, torch.tensor(1.0))


def test_tau_is_at_most_100():
    log_temperature = torch.nn.Parameter(torch.tensor(9.0))
    limit_temperature(log_temperature)
    assert log_temperature.item() == pytest.approx(math.log(100))
