"""What a classifier is worth, clean or by noise level: accuracy, calibration, and the gradient it gives.

Classifier guidance follows g = grad_x log p(y | x_t). Where a classifier is certain of the right class, log p
is near 0 and flat and g vanishes, and where it is certain of a wrong one g points there: so beside the
accuracy it matters at each noise level whether confidence is justified, and how long g is.

References:
    Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equation 3.
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from guided_diffusers.core.checks import check_int, check_tensor, check_that
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.core.randomness import randn_for, seed_for
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.estimate import Estimate, wilson_estimate
from guided_diffusers.evaluation.images import check_integers
from guided_diffusers.evaluation.plotting import as_image, new_figure
from guided_diffusers.losses import Levels, add_noise

Logits = Callable[[Tensor, NoiseLevel], Tensor]
CALIBRATION_BINS = 15


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """The gap between how sure a classifier is and how often it is right, averaged over images.

    Predictions are sorted by confidence, the largest probability, into the intervals ((m - 1) / M, m / M],
    m = 1 ... M. With B_m the n_m of the n images in interval m (Guo et al. 2017, equation 3),

        ECE = sum_m n_m / n |accuracy(B_m) - confidence(B_m)|.

    Args:
        probabilities: (images, classes), each row summing to 1.
        labels: (images,), the true classes.
        bins: M, at least 1.

    Returns:
        A number in [0, 1]; 0 for a calibrated classifier, up to the noise of finitely many images.

    Raises:
        ValueError: No images, shapes that do not fit, or `bins` below 1.
    """
    check_tensor("probabilities", probabilities, ("images", "classes"))
    check_that(len(probabilities), "probabilities", probabilities, "at least one image")
    check_integers("labels", labels, *probabilities.shape)
    check_int("bins", bins, 1)
    confidence, predicted = probabilities.double().max(dim=1)
    gap = (predicted == labels).double() - confidence
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return (gap.new_zeros(bins).index_add_(0, interval, gap).abs().sum() / len(labels)).item()


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """A classifier on labelled images, at one range of noise levels or on clean images.

    Attributes:
        accuracy: Fraction of images whose class is the likeliest, with Wilson's interval.
        calibration_error: `expected_calibration_error`, 15 bins.
        cross_entropy: Mean of -log p(y | x) in nats.
        noise_to_signal: sigma / alpha in the middle of the range; None for clean images.
        gradient_norm: Mean of |grad_x log p(y | x_t)| over images; None where it was not asked for.
    """

    accuracy: Estimate
    calibration_error: float
    cross_entropy: Estimate
    noise_to_signal: float | None = None
    gradient_norm: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields under their names, ready for JSON."""
        return asdict(self)


def classifier_report(
    logits: Tensor, labels: Tensor, gradient_norms: Tensor | None = None, noise_to_signal: float | None = None
) -> ClassifierReport:
    """The figures of a classifier's answers.

    Args:
        logits: (images, classes).
        labels: (images,), the true classes.
        gradient_norms: (images,), of grad_x log p(y | x_t).
        noise_to_signal: sigma / alpha of what the classifier saw.
    """
    log_probs = logits.double().log_softmax(dim=1)
    hits = log_probs.argmax(dim=1) == labels
    return ClassifierReport(
        accuracy=wilson_estimate(int(hits.sum()), len(labels)),
        calibration_error=expected_calibration_error(log_probs.exp(), labels),
        cross_entropy=mean_estimate(functional.nll_loss(log_probs, labels, reduction="none")),
        noise_to_signal=noise_to_signal,
        gradient_norm=None if gradient_norms is None else mean_estimate(gradient_norms),
    )


def answers_and_gradients(
    logits: Logits, sample: Tensor, level: NoiseLevel, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A classifier's logits (batch, classes), and the gradient of log p(y | x_t) at x_t (batch, ...).

    Args:
        logits: `(x_t, level) -> (batch, classes)`; x_t unscaled. A sample's must depend on it alone.
        sample: x_t, (batch, ...).
        level: Its noise level, 0-dim or (batch,).
        labels: (batch,).
    """
    with torch.enable_grad():
        sample = sample.detach().requires_grad_()
        answers = logits(sample, level)
        chosen = at_least_float32(answers).log_softmax(dim=1).gather(1, labels[:, None])
        return answers.detach(), torch.autograd.grad(chosen.sum(), sample)[0]


def reports_by_noise(
    logits: Logits,
    x0: Tensor,
    labels: Tensor,
    levels: Levels,
    *,
    bins: int = 10,
    seed: int = 0,
    batch_size: int = 100,
) -> list[ClassifierReport]:
    """A noise-aware classifier by noise level, from clean to noisy.

    The range of bin k of K is that of the levels at u in [k / K, (k + 1) / K) of a distribution; every image
    is noised once in each, at a u of its own.

    Args:
        logits: `(x_t, level) -> (batch, classes)`.
        x0: Clean samples, (images, ...), on the classifier's device.
        labels: (images,), on the same device.
        levels: A distribution of noise levels, such as training's.
        bins: K.
        seed: Of noise and levels: functions of it, the bin and the image's number, whatever the batch size.
        batch_size: Images at a time.
    """
    reports = []
    for place in range(bins):
        answers, norms = [], []
        for start in range(0, len(x0), batch_size):
            rows = range(start, min(start + batch_size, len(x0)))
            indices = [place * len(x0) + row for row in rows]
            noise = randn_for(seed, indices, x0.shape[1:], device=x0.device, dtype=x0.dtype)
            uniform = [seed_for(seed + 1, index) / 2**63 for index in indices]
            level = levels((place + torch.tensor(uniform, dtype=torch.float64)) / bins)
            sample = add_noise(x0[rows.start : rows.stop], noise, level)
            given, gradient = answers_and_gradients(logits, sample, level, labels[rows.start : rows.stop])
            answers.append(given)
            norms.append(gradient.flatten(1).double().norm(dim=1))
        middle = levels(torch.tensor([(place + 0.5) / bins], dtype=torch.float64)).noise_to_signal.item()
        reports.append(
            classifier_report(torch.cat(answers).cpu(), labels.cpu(), torch.cat(norms).cpu(), middle)
        )
    return reports


def classifier_figure(reports: Sequence[ClassifierReport], title: str = "") -> Image.Image:
    """Accuracy, calibration error and gradient norm by noise level, with 95% bands. Needs the extra `eval`.

    Args:
        reports: What `reports_by_noise` gave.
        title: Above the figure.

    Raises:
        ValueError: No reports, or one without noise level.
    """
    levelled = bool(reports) and all(report.noise_to_signal is not None for report in reports)
    check_that(levelled, "reports", reports, "one or more of reports_by_noise, each with its noise level")
    figure = new_figure(9.6, 3.2)
    ratios = [report.noise_to_signal for report in reports]
    panels = {
        "accuracy": [report.accuracy for report in reports],
        "calibration error (ECE)": [report.calibration_error for report in reports],
        "|∇ log p(y | x_t)|": [report.gradient_norm for report in reports],
    }
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        estimates = [value for value in values if isinstance(value, Estimate)]
        axes.plot(ratios, [e.value for e in estimates] or values, marker="o", ms=3)
        if estimates:
            axes.fill_between(
                ratios, [e.low for e in estimates], [e.high for e in estimates], alpha=0.25, linewidth=0
            )
        axes.set(xscale="log", xlabel="noise level σ/α", title=name, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return as_image(figure)
