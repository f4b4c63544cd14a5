"""Writes the model card of guidance by a noise-aware CLIP from the measured JSON: no figure is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/clip_guidance/card.py --results model_cards/fashion-32-clip-guided.json
        --output model_cards/fashion-32-clip-guided.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guided_diffusers.evaluation.cards import (
    by_noise,
    card_parser,
    interval,
    percent,
    recipe,
    run_name,
    scale_of,
    training_command,
    write_card,
)

TEMPLATE = Path(__file__).with_name("card.template.md")
MIN_AGREEMENT = 0.75
FORM_NAMES = {"score": "score", "mean_shift": "mean-shift"}


def main() -> None:
    """Parses the command line and writes the card."""
    arguments = card_parser(__doc__, "measure.py").parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.pictures, arguments.results.name))


def card(results: Mapping[str, Any], pictures: str, results_name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    settings, models, judge, rows = (results[key] for key in ("settings", "models", "judge", "rows"))
    best = next(row for row in rows if scale_of(row) == results["best_scale"])
    clip = models["clip"]["training"]
    return TEMPLATE.read_text().format(
        results_name=results_name,
        name=results["name"],
        goal=goal(rows, best),
        picture=f"{pictures}/{results['name']}.png",
        rows="\n".join(map(table_row, rows)),
        best_scale=results["best_scale"],
        rule=results["rule"],
        images=best["images"],
        captions=settings["captions_per_class"],
        form=FORM_NAMES[settings["form"]],
        low=settings["interval"][0],
        high=settings["interval"][1],
        contrast=", against one caption of each class" if settings["contrast"] else "",
        **{key: settings[key] for key in ("images_per_class", "seed", "scheduler", "steps")},
        judge=judge["class"],
        judge_seed=judge["training"]["seed"],
        judge_accuracy=percent(judge["test_accuracy"]),
        by_class=", ".join(f"{name} {share:.0%}" for name, share in best["agreement_per_class"].items()),
        threads=results["machine"]["threads"],
        processor=results["machine"]["processor"],
        sizes=", ".join(f"{name} {model['parameters_millions']} million" for name, model in models.items()),
        clip_figures=by_noise(clip),
        recipes="\n".join(recipe(name, model["training"]) for name, model in models.items()),
        training_commands="\n".join(commands(models)),
        measure_command=measure_command(results, results_name),
    )


def goal(rows: list[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """How far the denoiser that knows no text agrees with the prompt, in words."""
    found, plain = best["agreement"], next((row for row in rows if not scale_of(row)), None)
    reached = "reaches" if found["value"] >= MIN_AGREEMENT else "does not reach"
    text = (
        f"**{percent(found)} of {best['images']:,} images agree with their prompt** at scale "
        f"{scale_of(best):g}, which {reached} the {MIN_AGREEMENT:.0%} that was wanted."
    )
    return f"{text} Unguided they are {percent(plain['agreement'])}." if plain is not None else text


def table_row(row: Mapping[str, Any]) -> str:
    """A scale's line."""
    cells = [
        f"{scale_of(row):g}",
        percent(row["agreement"]),
        interval(row["sharpness"], ".2f"),
        interval(row["sharpness_laplacian"], ".2f"),
        f"{row['variance_within_class']:.2f}",
        f"{row['images_per_second']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def commands(models: Mapping[str, Any]) -> list[str]:
    """The commands of the two trainings."""
    scripts = {"unconditional": "train_unconditional", "clip": "train_clip"}
    return [training_command(models[name]["training"], script) for name, script in scripts.items()]


def measure_command(results: Mapping[str, Any], results_name: str) -> str:
    """The command of the measurement with the options that it had."""
    settings, models = results["settings"], results["models"]
    denoiser, clip = (run_name(models[name]["training"]) for name in ("unconditional", "clip"))
    scales = " ".join(f"{scale_of(row):g}" for row in results["rows"])
    low, high = settings["interval"]
    return (
        f"python benchmarks/studies/clip_guidance/measure.py \\\n"
        f"    --denoiser runs/{denoiser} --clip runs/{clip} \\\n"
        f"    --data data/fashion --judge cache/judge.safetensors \\\n"
        f"    --scales {scales} --form {settings['form']} --interval {low:g} {high:g} "
        f"--scheduler {settings['scheduler']}{' --contrast' if settings['contrast'] else ''} \\\n"
        f"    --images-per-class {settings['images_per_class']} --steps {settings['steps']} "
        f"--picture docs/images/{results['name']}.png \\\n"
        f"    --save runs/{results['name']} --output model_cards/{results_name}"
    )


if __name__ == "__main__":
    main()
