"""Writes the model card of the LoRA study from the measured JSON: no figure is typed.

The words are in card.template.md. Run:

    python benchmarks/studies/lora/card.py --results model_cards/fashion-32-lora.json
        --output model_cards/fashion-32-lora.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guided_diffusers.evaluation.cards import card_parser, percent, recipe, write_card

TEMPLATE = Path(__file__).with_name("card.template.md")
MIN_AGREEMENT, MOST_LOST, MOST_BYTES = 0.80, 0.02, 1_000_000


def main() -> None:
    """Parses the command line and writes the card."""
    arguments = card_parser(__doc__, "measure.py").parse_args()
    results = json.loads(arguments.results.read_text())
    write_card(arguments.output, card(results, arguments.results.name))


def card(results: Mapping[str, Any], results_name: str) -> str:
    """The whole card as Markdown with its YAML head."""
    base, lora, judge = results["base"], results["lora"], results["judge"]
    names, training = list(base["by_class"]), results["training"]
    others = [name for name in names if name != results["class"]]
    changes = {n: lora["by_class"][n]["value"] - base["by_class"][n]["value"] for n in others}
    return TEMPLATE.read_text().format(
        name=Path(results_name).stem,
        results_name=results_name,
        taught=results["class"],
        goal=goal(results),
        head=" | ".join(names),
        rule="|".join(["---"] * len(names)),
        base_row=" | ".join(percent(base["by_class"][name]) for name in names),
        lora_row=" | ".join(percent(lora["by_class"][name]) for name in names),
        base_others=f"{base['others']:.1%}",
        lora_others=f"{lora['others']:.1%}",
        lost=", ".join(f"{n} {100 * change:+.0f}" for n, change in changes.items() if round(change, 3)),
        bytes=results["bytes"],
        difference=f"{results['stock_difference']:.1e}",
        judge_accuracy=percent(judge["test_accuracy"]),
        rank=training["lora"]["config"]["lora"]["rank"],
        prior=training["lora"]["config"]["prior"]["images"],
        recipes="\n".join(recipe(name, run) for name, run in training.items()),
        **results["settings"],
    )


def goal(results: Mapping[str, Any]) -> str:
    """What was wanted, and whether it is so, in words."""
    taught, lost = results["lora"]["taught"], results["base"]["others"] - results["lora"]["others"]
    met = [taught["value"] >= MIN_AGREEMENT, lost <= MOST_LOST, results["bytes"] < MOST_BYTES]
    reached = "reached" if all(met) else "not all reached"
    return (
        f"**{percent(taught)} of the pictures asked for as a {results['class']} are one**; without the LoRA "
        f"{percent(results['base']['taught'])}. Wanted were {MIN_AGREEMENT:.0%}, other classes that lose at "
        f"most {100 * MOST_LOST:.0f} points in the mean (they change by {-100 * lost:+.1f}), and a file "
        f"below {MOST_BYTES:,} bytes: {reached}."
    )


if __name__ == "__main__":
    main()
