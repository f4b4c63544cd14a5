import pytest
import torch
from safetensors.torch import save_file

from guided_diffusers.evaluation import (
    Judge,
    JudgeConfig,
    JudgeTraining,
    agreement,
    judge_images,
    load_judge,
    save_judge,
    train_judge,
)

CONFIG = JudgeConfig(num_classes=3, image_size=16, width=4)
TRAINING = JudgeTraining(epochs=4, batch_size=32, seed=3)


def stripes(count, seed):
    """Three classes that a small network can learn: horizontal stripes, vertical ones, and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(256, (count, 1, 16, 16), generator=generator)
    wave = 90 * (torch.arange(16) // 2 % 2) + 80
    images[labels == 0] = wave[:, None] + images[labels == 0] // 4
    images[labels == 1] = wave[None, :] + images[labels == 1] // 4
    return images.to(torch.uint8), labels


@pytest.fixture(scope="module")
def judge():
    return train_judge(*stripes(512, 0), CONFIG, TRAINING)


def test_training_learns_and_is_repeatable(judge):
    images, labels = stripes(300, 1)
    assert agreement(judge_images(judge, images), labels).overall.value > 0.9
    torch.manual_seed(99)  # the caller's random state must not matter, nor change
    before = torch.get_rng_state()
    losses = []
    again = train_judge(*stripes(512, 0), CONFIG, TRAINING, on_epoch=lambda epoch, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in judge.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_batch_size_and_storage_do_not_matter(judge):
    images, _ = stripes(50, 2)
    whole = judge_images(judge, images, batch_size=50)
    torch.testing.assert_close(judge_images(judge, images, batch_size=7), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(judge_images(judge, images.float() / 127.5 - 1), whole, rtol=1e-5, atol=1e-5)


def test_save_and_load(judge, tmp_path):
    save_judge(judge, tmp_path / "cache" / "judge.safetensors", test_accuracy=0.93, data=["a", "b"])
    loaded, facts = load_judge(tmp_path / "cache" / "judge.safetensors")
    images, _ = stripes(20, 4)
    assert torch.equal(judge_images(loaded, images), judge_images(judge, images))
    assert facts == {"test_accuracy": 0.93, "data": ["a", "b"]} and loaded.config == CONFIG


def test_errors_name_their_cause(judge, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        load_judge(tmp_path / "absent.safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_judge(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"\(batch, 1, 16, 16\)"):
        judge(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="image_size"):
        JudgeConfig(image_size=28)
    with pytest.raises(ValueError, match="uint8"):
        train_judge(torch.zeros(64, 1, 16, 16), torch.zeros(64).long(), CONFIG, TRAINING)


def test_agreement_counts_by_class():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2, 2])]
    result = agreement(logits, torch.tensor([0, 1, 1, 2, 2, 0]))
    assert result.overall.value == pytest.approx(4 / 6)
    assert {c: e.value for c, e in result.per_class.items()} == {0: 0.5, 1: 0.5, 2: 1.0}
    assert result.overall.low < 4 / 6 < result.overall.high


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 1, 2], [0.0, 1.0]])
def test_agreement_refuses_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match="labels"):
        agreement(torch.zeros(2, 3), torch.tensor(labels))


def test_a_judge_has_the_size_it_says():
    assert 350_000 < sum(p.numel() for p in Judge(JudgeConfig()).parameters()) < 450_000
