"""Does an image show what its prompt asked for? The fraction of images that a judge gives the prompt's class.

The judge is any classifier of clean images that the generator has never met; its own error bounds what the
figure can say: a judge that is right on 93% of real images cannot tell a generator at 99% from one at 100%.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_tensor, shown
from guided_diffusers.evaluation.estimate import Estimate, wilson_estimate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The fraction of images on which the judge agrees: overall, and for each class that was asked for."""

    overall: Estimate
    per_class: dict[int, Estimate]


def agreement(logits: Tensor, labels: Tensor, *, confidence: float = 0.95) -> Agreement:
    """Compares a judge's answers with the classes that were asked for.

    Args:
        logits: (batch, num_classes) scores of the judge; the largest is its answer.
        labels: (batch,) integers in [0, num_classes): the class that each image was asked to show.
        confidence: Coverage of the intervals (Wilson's).

    Raises:
        ValueError: If the shapes do not fit, there are no images, or a label is out of range.
    """
    check_finite("logits", check_tensor("logits", logits))
    check_tensor("labels", labels, floating=False)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.numel() == 0:
        raise ValueError(
            f"`logits` and `labels` must have shapes (batch, num_classes) and (batch,) with batch >= 1, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"`labels` must be integers, got {shown(labels)}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"`labels` must be integers from 0 to {logits.shape[1] - 1}, the judge's classes; got "
            f"{labels.dtype} from {labels.min().item()} to {labels.max().item()}."
        )
    agrees = logits.argmax(dim=1) == labels

    def estimate(hits: Tensor) -> Estimate:
        return wilson_estimate(int(hits.sum()), hits.numel(), confidence)

    classes = sorted(set(labels.tolist()))
    return Agreement(overall=estimate(agrees), per_class={c: estimate(agrees[labels == c]) for c in classes})
