"""The study of a LoRA: its card is of its figures."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "model_cards" / "fashion-32-lora.json"


def test_the_card_is_of_the_figures(load_script):
    results = json.loads(RESULTS.read_text())
    made = load_script("studies/lora/card").card(results, RESULTS.name)
    assert made == RESULTS.with_suffix(".md").read_text()
    assert "below 1,000,000 bytes: reached" in made
    results["lora"]["others"] = results["base"]["others"] - 0.021
    assert "not all reached" in load_script("studies/lora/card").goal(results)
