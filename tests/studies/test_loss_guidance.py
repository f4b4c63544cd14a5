"""The study of loss guidance: its figures, its card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "benchmarks" / "studies" / "loss_guidance"
RESULTS = ROOT / "model_cards" / "fashion-32-loss-guidance.json"


def test_what_is_known_is_compared_alone(load_script):
    measure = load_script("studies/loss_guidance/measure")
    real, images = torch.zeros(3, 1, 8, 8), torch.full((3, 1, 8, 8), 1e-3)
    images[..., 4:] = 0.2
    for problem, known in (("inpainting", 66.02), ("super-resolution", 23.01)):  # 10 log10(4 / mean square)
        figures = measure.compared(images, real, measure.PROBLEMS[problem])
        assert figures["known"]["value"] == pytest.approx(known, abs=0.01)
        assert figures["whole"]["value"] == pytest.approx(23.01, abs=0.01)


@pytest.mark.slow
def test_the_card_is_of_the_figures_and_they_show_what_it_says(tmp_path):
    command = [STUDY / "card.py", "--results", RESULTS, "--output", tmp_path / "card.md"]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    assert (tmp_path / "card.md").read_text() == RESULTS.with_suffix(".md").read_text()
    found = [(record["point"], record["figures"]) for record in json.loads(RESULTS.read_text())["points"]]
    classes = [(p["scale"], f["agreement"]["value"]) for p, f in found if p["problem"] == "class"]
    assert dict(classes)[0.0] < 0.2 and max(value for _, value in classes) >= 0.6
    for problem in ("inpainting", "super-resolution"):
        assert max(f["known"]["value"] for p, f in found if p["problem"] == problem) > 25
