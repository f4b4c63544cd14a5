r"""Writes the model card of a Fashion-MNIST checkpoint from the measured JSON: no measurement is typed.

With `--facts card.json` also the facts that `guided-diffusers push` fills its own card with.

The words are in card.template.md. Run:

    python benchmarks/studies/fashion_32/card.py --results model_cards/fashion-32.json \
        --sweep model_cards/fashion-32-guidance.json --sampler model_cards/fashion-32-sampler.json \
        --pictures model_cards/fashion-32-pictures.json --output model_cards/fashion-32.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pictures_section import section as pictures_section
from sweep_section import sampler_section
from sweep_section import section as sweep_section

from guided_diffusers.evaluation.cards import recipe
from guided_diffusers.hub import CardFacts
from guided_diffusers.hub.facts import recipe as recipe_line

TEMPLATE = Path(__file__).with_name("card.template.md")


def main() -> None:
    """Parses the command line and writes the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="what benchmarks/studies/fashion_32/measure.py wrote"
    )
    parser.add_argument(
        "--picture", default="../docs/images/fashion-32-grid.png", help="as the card links it"
    )
    parser.add_argument("--sweep", type=Path, default=None, help="results.json of a sweep over guidance")
    parser.add_argument("--sampler", type=Path, default=None, help="the same under the checkpoint's sampler")
    parser.add_argument("--pictures", type=Path, default=None, help="JSON of pictures.py")
    parser.add_argument("--output", type=Path, required=True, help="the card to write")
    parser.add_argument("--facts", type=Path, default=None, help="the facts to write, as card.json")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    extras = (arguments.sweep, arguments.sampler, arguments.pictures)
    arguments.output.write_text(card(results, arguments.picture, arguments.results.name, *extras))
    if arguments.facts is not None:
        arguments.facts.write_text(facts(results).to_json())


def facts(results: dict[str, Any]) -> CardFacts:
    """What a card on the Hub says beside the files: the figures of the default row, and the runs."""
    row = next(row for row in results["rows"] if row["default"])
    figures = {
        name: value
        for name, value in row.items()
        if name != "images_per_second"
        and (isinstance(value, float) or (isinstance(value, dict) and "value" in value))
    }
    runs = results["training"]
    return CardFacts(
        name=results["checkpoint"],
        recipe=tuple(
            recipe_line(name, run["images_seen"], run["config"]["training"]) for name, run in runs.items()
        ),
        images_seen=sum(run["images_seen"] for run in runs.values()),
        evaluation={"images": row["images"], "figures": figures},
    )


def card(
    results: dict[str, Any],
    picture: str,
    results_name: str,
    sweep: Path | None = None,
    sampler: Path | None = None,
    pictures: Path | None = None,
) -> str:
    """The whole card as Markdown with its YAML head; all other pictures lie beside `picture`."""
    default = next(row for row in results["rows"] if row["default"])
    parts = results["parameters_millions"]
    judge = results["judge"]
    accuracy = judge["test_accuracy_per_class"]
    return TEMPLATE.read_text().format(
        **parts,
        guidance_compared=compared(sweep, Path(picture).parent) + chosen(sampler, results),
        at_work=at_work(pictures, Path(picture).parent, results["checkpoint"]),
        name=results["checkpoint"],
        results_name=results_name,
        picture=picture,
        size=results["image_size"],
        latents="x".join(map(str, [*results["latent_shape"][1:], results["latent_shape"][0]])),
        total=sum(parts.values()),
        steps=results["steps"],
        prediction_type=results["prediction_type"],
        scheduler=results["scheduler"],
        default=guidance_text(results["default_guidance"]),
        images=default["images"],
        per_class=default["images"] // len(default["agreement_per_class"]),
        rows="\n".join(table_rows(results)),
        per_class_text=", ".join(
            f"{name} {percent(v)}" for name, v in default["agreement_per_class"].items()
        ),
        judge_parameters=judge["parameters"] / 1e6,
        judge_accuracy=interval(judge["test_accuracy"], percent),
        judge_worst=" and ".join(
            f"{n} ({percent(accuracy[n])})" for n in sorted(accuracy, key=accuracy.get)[:2]
        ),
        laplacian=interval(default["sharpness_laplacian"], "{:.2f}".format),
        recipes="\n".join(recipe(name, run) for name, run in results["training"].items()),
    )


def compared(sweep: Path | None, pictures: Path) -> str:
    """The section on a sweep; empty without one."""
    if sweep is None:
        return ""
    results = json.loads(sweep.read_text())
    return sweep_section(results, sweep.name, f"{pictures}/{sweep.stem}") + "\n\n"


def chosen(sampler: Path | None, results: dict[str, Any]) -> str:
    """How the default's scale was chosen; empty where no such sweep was run."""
    if sampler is None:
        return ""
    default = guidance_text(results["default_guidance"])
    return sampler_section(json.loads(sampler.read_text()), sampler.name, default) + "\n\n"


def at_work(facts: Path | None, pictures: Path, name: str) -> str:
    """The section of pictures; empty without what is known of them."""
    if facts is None:
        return ""
    return pictures_section(json.loads(facts.read_text()), str(pictures), name) + "\n\n"


def table_rows(results: dict[str, Any]) -> list[str]:
    """The table's lines: every guidance, the default bold, then reconstructed and real images."""
    lines = []
    for row in results["rows"]:
        label = guidance_text(row["guidance"])
        label = f"**{label} (default)**" if row["default"] else label
        lines.append(_line(label, row))
    lines.append(_line("the autoencoder's copies of real images", results["autoencoder"]))
    lines.append(_line("real test images", results["real"]))
    return lines


def _line(label: str, row: dict[str, Any]) -> str:
    agreement = interval(row["agreement"], percent)
    sharpness = interval(row["sharpness"], "{:.2f}".format)
    return f"| {label} | {agreement} | {sharpness} | {row['variance_within_class']:.2f} |"


def guidance_text(config: list[dict[str, Any]]) -> str:
    """A guidance in words: `γ = 2`, and what else it holds."""
    texts = []
    for term in config:
        name = "γ" if term["term"] == "ClassifierFreeGuidance" else f"`{term['term']}`"
        name += " under the null condition, scale" if term.get("null") else ""
        text = f"{name} = {term['scale']:g}"
        if term.get("interval"):
            low, high = term["interval"]
            text += f" for σ/α in ({low:g}, {'∞' if high is None else format(high, 'g')}]"
        texts.append(text)
    return " + ".join(texts)


def interval(estimate: dict[str, float], show: Any) -> str:
    """`value [low, high]`, each shown by a function."""
    return f"{show(estimate['value'])} [{show(estimate['low'])}, {show(estimate['high'])}]"


def percent(value: float) -> str:
    """A fraction as per cent with one decimal."""
    return f"{100 * value:.1f}%"


if __name__ == "__main__":
    main()
