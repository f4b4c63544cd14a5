"""Does an image show what its prompt asked for? The fraction of images that a judge gives the prompt's class.

The judge is any classifier of clean images that the generator has never met; its own error bounds what the
figure can say: a judge that is right on 93% of real images cannot tell a generator at 99% from one at 100%.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from guided_diffusers.core.checks import check_finite, check_tensor, check_that
from guided_diffusers.evaluation.estimate import Estimate, wilson_estimate
from guided_diffusers.evaluation.images import check_integers


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
    check_finite("logits", check_tensor("logits", logits, ("batch", "num_classes")))
    check_that(len(logits), "logits", logits, "at least one image")
    check_integers("labels", labels, *logits.shape)
    agrees = logits.argmax(dim=1) == labels

    def estimate(hits: Tensor) -> Estimate:
        return wilson_estimate(int(hits.sum()), hits.numel(), confidence)

    classes = sorted(set(labels.tolist()))
    return Agreement(overall=estimate(agrees), per_class={c: estimate(agrees[labels == c]) for c in classes})
