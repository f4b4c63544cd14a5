"""A small convolutional network that judges images: trained on real ones, apart from the generator it judges.

It sees images as the generator makes them (same size, same channels, [-1, 1]) and answers with class logits.
Its own accuracy on real test images belongs beside every figure that it gives. Training is a function of the
data, the settings and the seed: on one machine with one number of threads it is repeatable bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from guided_diffusers.core.checks import check_tensor, check_that
from guided_diffusers.core.declared import Count, Declared
from guided_diffusers.evaluation.images import check_integers, check_pixels


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Declared):
    """What a judge expects and how wide it is; ValueError for an `image_size` that is no multiple of 16."""

    num_classes: Count = 10
    in_channels: Count = 1
    image_size: Count = 32
    width: Count = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_that(self.image_size % 16 == 0, "image_size", self.image_size, "a multiple of 16")


class Judge(nn.Module):
    """Three convolutions, a residual pair and a linear layer: about 0.4M parameters at width 32."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = _convolution(config.in_channels, width, kernel_size=5, stride=2)
        self.middle = _convolution(width, 2 * width)
        self.deep = _convolution(2 * width, 4 * width)
        self.residual = nn.Sequential(_convolution(4 * width, 4 * width), _convolution(4 * width, 4 * width))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(4 * width * (config.image_size // 16) ** 2, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, image_size, image_size) in [-1, 1].

        Raises:
            ValueError: If the images have another shape; resize them to the judge's, or train one for theirs.
        """
        return self.head(self.dropout(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees, (batch, 4 * width * (image_size // 16)^2), of images as `forward`'s."""
        return F.max_pool2d(self.feature_maps(images)[-1], 2).flatten(1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What each of the four parts makes of images as `forward`'s: 1/2, 1/2, 1/4 and 1/8 of their size."""
        size = self.config.image_size
        check_tensor("images", images, ("batch", self.config.in_channels, size, size))
        stem = self.stem(images)
        middle = self.middle(stem)
        deep = self.deep(F.max_pool2d(middle, 2))
        hidden = F.max_pool2d(deep, 2)
        return [stem, middle, deep, hidden + self.residual(hidden)]


def _convolution(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


@dataclass(frozen=True, kw_only=True)
class JudgeTraining:
    """How a judge is trained: AdamW, a one-cycle learning rate, half of the images flipped left to right."""

    epochs: int = 7
    batch_size: int = 128
    max_learning_rate: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    seed: int = 0


def train_judge(
    images: Tensor,
    labels: Tensor,
    config: JudgeConfig,
    training: JudgeTraining = JudgeTraining(),  # noqa: B008 - frozen
    *,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Judge:
    """Trains a judge from scratch on real images.

    Args:
        images: (count, in_channels, image_size, image_size) uint8, as stored; scaled to [-1, 1] by the batch.
        labels: (count,) int64 in [0, num_classes).
        config: Shape of the network.
        training: Recipe and seed; the caller's random state is left as it was.
        on_epoch: Called with (epochs done, mean training loss of the epoch).

    Returns:
        The judge in evaluation mode.

    Raises:
        ValueError: If the images are not uint8 or their number differs from the labels'.
    """
    check_pixels("images", images)
    check_that(len(images) >= training.batch_size, "images", images, f"a batch, {training.batch_size}")
    check_integers("labels", labels, len(images), config.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        judge = Judge(config).to(memory_format=torch.channels_last).train()
        optimizer = AdamW(judge.parameters(), weight_decay=training.weight_decay)
        total_steps = len(images) // training.batch_size * training.epochs
        schedule = OneCycleLR(optimizer, training.max_learning_rate, total_steps=total_steps)
        for epoch in range(training.epochs):
            loss = _train_epoch(judge, images, labels, training, optimizer, schedule)
            if on_epoch is not None:
                on_epoch(epoch + 1, loss)
    return judge.eval().to(memory_format=torch.contiguous_format)


def _train_epoch(
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    training: JudgeTraining,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> float:
    """One pass over the shuffled images, the incomplete last batch left out; returns the mean loss."""
    losses = []
    for index in torch.randperm(len(images)).split(training.batch_size):
        if len(index) < training.batch_size:
            break
        batch = to_unit_range(images[index])
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
        logits = judge(batch.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels[index], label_smoothing=training.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def to_unit_range(images: Tensor) -> Tensor:
    """8-bit images as float32 (float64 of float64) in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    return (images if images.dtype == torch.float64 else images.float()) / 127.5 - 1


@torch.no_grad()
def judge_images(judge: Judge, images: Tensor, batch_size: int = 500) -> Tensor:
    """Logits (count, num_classes) of many images; in evaluation mode the batch size changes nothing.

    Args:
        judge: The network, left in the mode it was in.
        images: (count, channels, size, size): uint8 as stored, or float in [-1, 1].
        batch_size: How many at a time.
    """
    was_training = judge.training
    judge.eval()
    stored = images.dtype == torch.uint8
    parts = [judge(to_unit_range(part) if stored else part) for part in images.split(batch_size)]
    judge.train(was_training)
    return torch.cat(parts)


def save_judge(judge: Judge, path: Path | str, **facts: object) -> None:
    """Writes one safetensors file: the weights, and in its metadata the configuration and any facts.

    Args:
        judge: The network.
        path: The file to write; its folder is made.
        facts: What is worth knowing later, such as the test accuracy; anything that JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(asdict(judge.config)), "facts": json.dumps(facts)}
    tensors = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


def load_judge(path: Path | str) -> tuple[Judge, dict[str, object]]:
    """Reads what `save_judge` wrote: the judge in evaluation mode, and the facts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no judge's file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`path`: no judge at {path}; train one first (benchmarks/studies/fashion_32/judge.py)"
        )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    check_that("config" in metadata, "path", str(path), "a judge's file, which `save_judge` wrote")
    judge = Judge(JudgeConfig(**json.loads(metadata["config"])))
    judge.load_state_dict(load_file(path))
    return judge.eval(), json.loads(metadata.get("facts", "{}"))
