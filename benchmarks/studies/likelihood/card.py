"""Writes the model card of the denoiser of pixels from the measured JSON: no measurement is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/likelihood/card.py --results model_cards/fashion-28-unconditional.json
        --output model_cards/fashion-28-unconditional.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guided_diffusers.evaluation.cards import card_parser, interval, write_card

TEMPLATE = Path(__file__).with_name("card.template.md")
WANTED_DRAWS = 50


def main() -> None:
    """Parses the command line and writes the card."""
    parser = card_parser(__doc__, "measure.py")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.pictures, arguments.results.name))


def card(results: dict[str, Any], pictures: str, results_name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    run, bounds = results["training"], results["bounds"]
    config, name = run["config"], results["checkpoint"]
    training, scheduler, objective = config["training"], config["scheduler"], config["objective"]
    return TEMPLATE.read_text().format(
        name=name,
        results_name=results_name,
        samples=f"{pictures}/{name}-samples.png",
        terms=f"{pictures}/{name}-terms.png",
        size=config["data"]["resolution"],
        parameters=results["parameters_millions"],
        megabytes=results["megabytes"],
        sampling_steps=results["sampling_steps"],
        kinds={1: "One", 2: "Two", 3: "Three"}[len(bounds)],
        rows="\n".join(row(kind, bound) for kind, bound in bounds.items()),
        agreement=agreement(bounds),
        prior=next(iter(bounds.values()))["prior"],
        floor=max(results["floor"].values()),
        draws_note=draws_note(results),
        others=results["draws"] - 1,
        **{key: results[key] for key in ("images", "draws", "full_images", "timesteps")},
        **{key: scheduler.get(key) for key in ("prediction_type", "variance_type")},
        schedule=scheduler.get("beta_schedule", "linear"),
        loss=objective["loss"],
        bound_weight=objective["bound_weight"],
        timestep_sampling=objective["timesteps"],
        images_seen=run["images_seen"],
        epochs=run["images_seen"] / 60_000,
        minutes=run["seconds"] / 60,
        **{key: training[key] for key in ("batch_size", "learning_rate")},
        precision={"no": "float32"}.get(training["mixed_precision"], training["mixed_precision"]),
        half_life=training["ema_half_life_images"],
        history=history(run["validation"]),
        processor=results["machine"]["processor"],
        config=json.dumps(config, indent=2),
    )


def row(kind: str, bound: dict[str, Any]) -> str:
    """A variance's line of the table."""
    full, same = bound["full"]["bits_per_dimension"], bound["estimate_minus_full_on_the_same"]
    cells = (interval(bound["estimate"]), f"{bound['decoder']:.3f}", interval(full), interval(same, "+.3f"))
    return f"| `{kind}` | {' | '.join(cells)} |"


def agreement(bounds: dict[str, Any]) -> str:
    """Whether the estimate and the full sum agree, in words."""
    texts = []
    for test, key, words in (
        ("holds_zero", "estimate_minus_full_on_the_same", "the interval of the difference holds zero"),
        ("intervals_overlap", "full_minus_estimate_on_all", "the intervals of the two means overlap"),
    ):
        failed = [kind for kind, bound in bounds.items() if not bound[key][test]]
        texts.append(f"{words} for {'every variance' if not failed else 'all but ' + ', '.join(failed)}")
    return f"They agree as far as this: {', and '.join(texts)}."


def draws_note(results: dict[str, Any]) -> str:
    """What is short of the plan, if anything."""
    draws = results["draws"]
    return "" if draws == WANTED_DRAWS else f" Draws: {draws} an image instead of {WANTED_DRAWS}, for time."


def history(validation: list[dict[str, Any]]) -> str:
    """The held-out bits on the way."""
    if not validation:
        return ""
    texts = [f"{record['bits_per_dim']:.2f} after {record['images']:,}" for record in validation]
    return f"Estimates on the way, on a few test images: {', '.join(texts)} images."


if __name__ == "__main__":
    main()
