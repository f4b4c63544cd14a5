"""How far what Algorithm 1 draws lies from the true conditional, by the number of steps.

    python benchmarks/studies/algorithm_1/measure.py --steps 50 250 1000 --samples 4096 --output rows.json

The denoiser is unconditional and the classifier exact, on a Gaussian mixture, at scale 1: the conditional is
known, and the error is the steps' own. Beside Algorithm 1 stand the score form, the conditional model drawn
with the same steps, and exact draws of the conditional: what no sampler of as many samples can beat. Prints a
Markdown table; it takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guided_diffusers import GuidedDDPMScheduler, sampling_loop
from guided_diffusers.core.exact import GaussianMixture
from guided_diffusers.guidance import ClassifierGuidance, Guidance, GuidanceSum

MIXTURE = GaussianMixture.of([[-1.0, -0.6], [1.1, -0.2], [0.1, 1.2]], [0.25, 0.4, 0.15], [0.5, 0.3, 0.2])
CLASSES = len(MIXTURE.classes)
VARIANCE_TYPES = ("fixed_small", "fixed_large")
METHODS: dict[str, Guidance] = {
    "algorithm_1": ClassifierGuidance(MIXTURE.log_prob, 1.0, form="mean_shift"),
    "score_form": ClassifierGuidance(MIXTURE.log_prob, 1.0),
    "conditional_model": GuidanceSum(),
}


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 250, 1000])
    parser.add_argument("--samples", type=int, default=4096, help="of each of the three classes")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file")
    arguments = parser.parse_args()
    rows = [measure(kind, steps, arguments.samples) for kind in VARIANCE_TYPES for steps in arguments.steps]
    print(table(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


def measure(variance_type: str, steps: int, samples: int) -> dict[str, Any]:
    """The mean over classes of each method's distance from the conditional, in its deviations."""
    labels = torch.arange(CLASSES).repeat_interleave(samples)
    noise = torch.randn(len(labels), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"variance_type": variance_type, "steps": steps, "samples": samples}
    for name, guidance in METHODS.items():

        def unconditional(sample: Tensor, level: Any, condition: Any, name: str = name) -> Tensor:
            return MIXTURE.denoise(sample, level, condition if name == "conditional_model" else None)

        scheduler = GuidedDDPMScheduler(
            variance_type=variance_type, timestep_spacing="linspace", clip_sample=False
        )
        generator = torch.Generator().manual_seed(2)
        drawn = sampling_loop(guidance(unconditional), scheduler, noise, labels, steps, generator=generator)
        row[name] = distance(drawn)
    row["exact_draws"] = distance(MIXTURE.means[labels] + MIXTURE.deviations[labels, None] * noise)
    return row


def distance(drawn: Tensor) -> float:
    """The mean over the classes, whose samples come one after the other."""
    return sum(distance_from_class(each, k) for k, each in enumerate(drawn.chunk(CLASSES))) / CLASSES


def distance_from_class(samples: Tensor, label: int) -> float:
    """Wasserstein-2 distance of samples `(n, 2)` from N(m_k, v_k I), axis by axis, in its deviations."""
    ranks = (torch.arange(len(samples), dtype=torch.float64) + 0.5) / len(samples)
    quantiles = torch.special.ndtri(ranks)[:, None]
    found = (samples.sort(0).values - MIXTURE.means[label]) / MIXTURE.deviations[label]
    return (found - quantiles).square().mean().sqrt().item()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = [*METHODS, "exact_draws"]
    lines = [f"| variance | steps | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = " | ".join(f"{row[name]:.3f}" for name in names)
        lines.append(f"| {row['variance_type']} | {row['steps']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
