"""How far the variational bound lies above the exact -log p, by the number of steps and the variance.

    python benchmarks/studies/bound_gap/measure.py --steps 10 50 250 1000 --images 100 --output bound_gap.json

Prints a Markdown table; see _discretised_gaussian.py for what is exact. It takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from discretised_gaussian import VARIANCE_TYPES, draw, exact_network, scheduler_of

from guided_diffusers.likelihood.bound import full_bound, mean_interval, with_variance


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 250, 1000])
    parser.add_argument("--images", type=int, default=100, help="of 4x4 pixels")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file")
    arguments = parser.parse_args()
    rows = [measure(steps, arguments.images) for steps in arguments.steps]
    print(table(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


def measure(steps: int, count: int) -> dict[str, Any]:
    """The gap of each variance type, with its interval, in bits a pixel."""
    scheduler, (images, exact) = scheduler_of(steps), draw(count)
    schedulers = {kind: with_variance(scheduler, kind) for kind in VARIANCE_TYPES}
    bounds = full_bound(exact_network(scheduler), schedulers, images, batch_size=1000)
    gaps = {kind: mean_interval(bound.total - exact).to_dict() for kind, bound in bounds.items()}
    return {"steps": steps, "exact_bits": exact.mean().item(), "gap": gaps}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| steps | {' | '.join(VARIANCE_TYPES)} |", "|---|" + "---|" * len(VARIANCE_TYPES)]
    for row in rows:
        cells = (f"{g['value']:.3f} [{g['low']:.3f}, {g['high']:.3f}]" for g in row["gap"].values())
        lines.append(f"| {row['steps']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
