"""Writes the card of loss guidance on the shipped checkpoint from the measured JSON: no figure is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/loss_guidance/card.py --results model_cards/fashion-32-loss-guidance.json
        --output model_cards/fashion-32-loss-guidance.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import best_of

from guided_diffusers.evaluation.cards import card_parser, interval, percent, write_card

TEMPLATE = Path(__file__).with_name("card.template.md")
Record = Mapping[str, Any]


def main() -> None:
    """Parses the command line and writes the card."""
    arguments = card_parser(__doc__, "measure.py").parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.pictures, arguments.results.name))


def card(results: Mapping[str, Any], pictures: str, results_name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    best = best_of(results, "class", "denoised")
    return TEMPLATE.read_text().format(
        results_name=results_name,
        pictures=f"{pictures}/{results['name']}",
        name=results["name"],
        inverse_rows="\n".join(inverse_rows(results)),
        class_rows="\n".join(class_rows(results)),
        best_agreement=percent(best["figures"]["agreement"]),
        best_scale=f"{best['point']['scale']:g}",
        best_recurrence=best["point"]["recurrence"],
        best_x0=percent(best_of(results, "class", "x0")["figures"]["agreement"]),
        classifier=results["classifier"]["class"],
        classifier_millions=results["classifier"]["parameters_millions"],
        classifier_accuracy=f"{100 * results['classifier']['test_accuracy']:.1f}%",
        judge=results["judge"]["class"],
        judge_accuracy=percent(results["judge"]["test_accuracy"]),
        processor=results["machine"]["processor"],
        **results["settings"],
    )


def inverse_rows(results: Mapping[str, Any]) -> list[str]:
    """A line for each point of the inverse problems, and what the autoencoder alone loses."""
    rows = []
    for problem, figures in results["autoencoder"].items():
        cells = [problem, "the autoencoder alone", "", "", *psnr(figures), ""]
        rows.append(f"| {' | '.join(cells)} |")
        for record in results["points"]:
            point = record["point"]
            if point["problem"] == problem:
                cells = [problem, f"through {point['through']}", f"{point['deviation']:g}"]
                cells += [shown(point["max_norm"]), *psnr(record["figures"])]
                rows.append(f"| {' | '.join([*cells, seconds(record)])} |")
    return rows


def shown(limit: float | None) -> str:
    """A cell: the most that a step may move."""
    return "none" if limit is None else f"{limit:g}"


def seconds(record: Record) -> str:
    """A cell: of the processor, an image."""
    return f"{record['seconds_an_image']:.2f}"


def psnr(figures: Record) -> list[str]:
    """Two cells: of what was known, of the whole image."""
    return [interval(figures[name], ".1f") for name in ("known", "whole")]


def class_rows(results: Mapping[str, Any]) -> list[str]:
    """A line for each point of the classes."""
    rows = []
    for record in results["points"]:
        point, figures = record["point"], record["figures"]
        if point["problem"] == "class":
            cells = [f"through {point['through']}", f"{point['scale']:g}", str(point["recurrence"])]
            cells.append(shown(point["max_norm"]))
            cells += [percent(figures["agreement"]), percent(figures["convinced"])]
            rows.append(f"| {' | '.join([*cells, seconds(record)])} |")
    return rows


if __name__ == "__main__":
    main()
