"""Two processes, each with half of a batch: their mean gradient is that of the whole batch."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import reduce
from processes import by_two
from torch import nn
from torch.nn.functional import normalize

from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.training.engine.parallel import by_shares, gathered, own_rows
from guided_diffusers.training.tasks.autoencoder_losses import adaptive_weight
from guided_diffusers.training.tasks.clip import different_texts
from guided_diffusers.training.tasks.contrastive import contrastive_loss

BATCH = 8
TOKENS = torch.tensor([[1, 5], [1, 7], [1, 5], [1, 2], [1, 7], [1, 9], [1, 5], [1, 3]])


class Clip(nn.Module):
    """A linear image encoder and an embedding of texts, in the place of a CLIPModel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images, self.words = nn.Linear(6, 4), nn.Embedding(10, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def get_text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.words(input_ids).sum(1)


def contrastive(rows: slice) -> dict[str, torch.Tensor]:
    """The loss of a batch of which this process has some rows, and its gradients."""
    clip, inputs = Clip(), torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(1))
    images = gathered(normalize(clip.images(inputs[rows]), dim=1))
    texts, own = different_texts(clip, TOKENS[rows])
    each = contrastive_loss(images, texts, own, clip.logit_scale.exp())
    each.mean().backward()
    gradients = {name: parameter.grad.contiguous() for name, parameter in clip.named_parameters()}
    mine = each.detach()[own_rows(len(TOKENS[rows]))].contiguous()
    return {**gradients, "loss": each.mean().detach(), "own": own, "mine": mine}


def test_a_contrastive_loss_is_of_the_batch_of_all_processes(tmp_path):
    whole = contrastive(slice(None))
    parts = by_two(lambda rank: contrastive(slice(4 * rank, 4 * rank + 4)), tmp_path)
    for part in parts:
        torch.testing.assert_close(part["loss"], whole["loss"])
        assert torch.equal(part["own"], whole["own"])
    torch.testing.assert_close(torch.cat([part["mine"] for part in parts]), whole["mine"])
    for name in ("images.weight", "images.bias", "words.weight", "logit_scale"):
        assert not torch.allclose(parts[0][name], whole[name]) or name == "logit_scale"
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name])


def weighed(rows: slice) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    layer, inputs = nn.Linear(3, 2), torch.randn(BATCH, 3)
    output = layer(inputs[rows])
    return {"weight": adaptive_weight(output.square().mean(), -output.mean(), layer.weight)}


def test_the_adaptive_weight_is_one_and_that_of_the_whole_batch(tmp_path):
    whole, alone = weighed(slice(None)), weighed(slice(0, 4))
    assert not torch.allclose(whole["weight"], alone["weight"])
    for part in by_two(lambda rank: weighed(slice(4 * rank, 4 * rank + 4)), tmp_path):
        torch.testing.assert_close(part["weight"], whole["weight"])


def drawn(rank: int) -> dict[str, torch.Tensor]:
    def make(numbers: list[int]) -> list[int]:
        assert all(number % 2 == rank for number in numbers)
        return [number * number for number in numbers]

    return {str(count): torch.tensor(by_shares(count, make)) for count in (0, 1, 5)}


def test_what_is_made_by_shares_comes_in_order_on_every_process(tmp_path):
    for part in by_two(drawn, tmp_path):
        assert [part[str(count)].tolist() for count in (0, 1, 5)] == [[], [0], [0, 1, 4, 9, 16]]


def broken(rank: int) -> dict[str, torch.Tensor]:
    def make(numbers: list[int]) -> list[int]:
        if 1 in numbers:
            raise NonFiniteError("number 1")
        return numbers

    with pytest.raises(NonFiniteError, match="number 1"):
        by_shares(2, make)
    return {"rank": torch.tensor(rank)}


def test_a_share_that_is_not_finite_is_told_to_every_process(tmp_path):
    assert [part["rank"] for part in by_two(broken, tmp_path)] == [0, 1]


def test_one_process_gathers_nothing():
    rows = torch.ones(3, 2, requires_grad=True)
    assert gathered(rows) is rows and own_rows(3) == slice(0, 3)
    assert reduce(rows, "mean").equal(rows)
