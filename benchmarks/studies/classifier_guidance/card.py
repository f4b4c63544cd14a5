"""Writes the model card of classifier guidance on Fashion-MNIST from the measured JSON: no figure is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/classifier_guidance/card.py
        --results model_cards/fashion-32-classifier-guided.json
        --output model_cards/fashion-32-classifier-guided.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from points import CONDITIONAL, best_guided, role_of
from words import (
    beside,
    everywhere,
    forms,
    frechet_of,
    goal,
    percent,
    point_text,
    records_of,
    thousandths,
    unconditional,
)

from guided_diffusers.evaluation.cards import (
    by_noise,
    card_parser,
    interval,
    recipe,
    run_name,
    training_command,
    write_card,
)

TEMPLATE = Path(__file__).with_name("card.template.md")
SCRIPTS = {
    "unconditional": "train_unconditional",
    "conditional": "train_unconditional",
    "classifier": "train_classifier",
}
Record = Mapping[str, Any]


def main() -> None:
    """Parses the command line and writes the card."""
    parser = card_parser(__doc__, "measure.py")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.pictures, arguments.results.name))


def card(results: Mapping[str, Any], pictures: str, results_name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    settings, models, distance = results["settings"], results["models"], results["distance"]
    judge, run, best = results["judge"], results["run"], best_guided(results)
    return TEMPLATE.read_text().format(
        results_name=results_name,
        pictures=f"{pictures}/{results['name']}",
        final_pictures="\n\n".join(final_pictures(results, pictures)),
        name=results["name"],
        head=table_head(results),
        rows="\n".join(table_row(record, distance) for record in unconditional(results)),
        grid_rows="\n".join(table_row(r, distance) for r in records_of(results, CONDITIONAL)),
        final_rows="\n".join(table_row(record, distance) for record in results["finals"]),
        real=real(results),
        features=results["features"] + ("" if results["features"] == "inception" else " (not Inception)"),
        frechet=frechet_of(results),
        distance=distance,
        goal=goal(results),
        forms=forms(results),
        beside=beside(results),
        everywhere=everywhere(results),
        rule=results["rule"],
        judge=judge["class"],
        judge_parameters=judge["parameters"] / 1e6,
        judge_accuracy=percent(judge["test_accuracy"]),
        judge_seed=judge["training"]["seed"],
        classifier=models["classifier"]["class"],
        classifier_seed=models["classifier"]["training"]["config"]["training"]["seed"],
        by_noise=by_noise(models["classifier"]["training"]),
        sizes=sizes(models),
        recipes="\n".join(recipe(name, model["training"]) for name, model in models.items()),
        training_commands="\n".join(
            training_command(model["training"], SCRIPTS[name]) for name, model in models.items()
        ),
        measure_command=measure_command(results, results_name),
        high=settings["interval"][1],
        **{key: settings[key] for key in ("num_images", "final_images", "seed", "scheduler")},
        **{key: settings[key] for key in ("variance_type", "beta_schedule", "prediction_type")},
        use_steps=best["point"]["steps"],
        default=point_text(best["point"]),
        minutes=run["minutes"],
        device=run["device"],
        threads=run["machine"]["threads"],
        processor=run["machine"]["processor"],
    )


def table_head(results: Mapping[str, Any]) -> str:
    """The columns of every table."""
    heads = ["guidance", "steps", "held-out accuracy", f"{results['distance']} x 1000", frechet_of(results)]
    heads += ["recall", "precision", "forwards of denoiser + classifier, backwards of classifier"]
    return f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|"


def table_row(record: Record, distance: str) -> str:
    """A point's line."""
    figures, compute = record["figures"], record["compute"]
    frechet = next(name for name in figures if name.startswith("F"))
    costs = [compute["forwards"].get(name, 0) for name in ("unet", "classifier")]
    cells = [
        point_text(record["point"]),
        str(record["point"]["steps"]),
        percent(figures["agreement"]),
        thousandths(figures[distance]),
        interval(figures[frechet], ".1f"),
        interval(figures["recall"], ".2f"),
        interval(figures["precision"], ".2f"),
        f"{costs[0]:g} + {costs[1]:g}, {compute['backwards'].get('classifier', 0):g}",
    ]
    return f"| {' | '.join(cells)} |"


def real(results: Mapping[str, Any]) -> str:
    """What real images have."""
    distance, frechet = results["distance"], frechet_of(results)
    texts = [
        f"{int(count):,} training images have {distance} x 1000 = {thousandths(figures[distance])}, "
        f"{frechet} = {interval(figures[frechet], '.1f')}, recall {interval(figures['recall'], '.2f')}"
        for count, figures in results["real"].items()
    ]
    return "; ".join(texts)


def final_pictures(results: Mapping[str, Any], pictures: str) -> list[str]:
    """The finals' pictures, eight images a class."""
    return [
        f"![{point_text(record['point'])}, {record['point']['steps']} steps]"
        f"({pictures}/{results['name']}-{role_of(record['point']).replace('_', '-')}.png)"
        for record in results["finals"]
    ]


def sizes(models: Mapping[str, Any]) -> str:
    """Parameters and megabytes of each network."""
    return ", ".join(
        f"{name} {model['parameters_millions']} million ({model['megabytes_float16']} MB in float16)"
        for name, model in models.items()
    )


def measure_command(results: Mapping[str, Any], results_name: str) -> str:
    """The command of the measurement with the options that it had."""
    settings = results["settings"]
    runs = " \\\n    ".join(
        f"--{name} runs/{run_name(model['training'])}" for name, model in results["models"].items()
    )
    low, high = settings["interval"]
    return (
        f"python benchmarks/studies/classifier_guidance/measure.py {runs} \\\n"
        f"    --data data/fashion --judge cache/judge.safetensors --num-images {settings['num_images']} "
        f"--final-images {settings['final_images']} --interval {low:g} {high:g} \\\n"
        f"    --pictures docs/images --save runs/{results['name']} --output model_cards/{results_name}"
    )


if __name__ == "__main__":
    main()
