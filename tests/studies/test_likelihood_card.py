"""The measurement of bits a dimension and its card, on a tiny pipeline and the slice of real data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from tiny import shallow_unet
from tiny_data import SLICE

from guided_diffusers import GuidedDDPMScheduler

ROOT = Path(__file__).parents[2]


def command(name, *arguments):
    script = ROOT / "benchmarks" / "studies" / "likelihood" / f"{name}.py"
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True)


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a run as the training script leaves it, with a tiny network."""
    torch.manual_seed(0)
    unet = shallow_unet(outputs=2, sample_size=28)
    folder = tmp_path / "run"
    schedule = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}
    DDPMPipeline(unet, GuidedDDPMScheduler(**schedule)).save_pretrained(folder / "final")
    training = {"output_dir": "/somewhere/run", "num_images": 64, "batch_size": 8, "learning_rate": 1e-3}
    training |= {"mixed_precision": "no", "ema_half_life_images": 8.0}
    objective = {"loss": "hybrid", "bound_weight": 0.001, "timesteps": "uniform"}
    config = {"training": training, "data": {"path": "/somewhere/fashion", "resolution": 28}}
    config |= {"scheduler": {**schedule, "prediction_type": "epsilon"}, "objective": objective}
    (folder / "config.json").write_text(json.dumps(config))
    records = [
        {"images": 64, "seconds": 60.0},
        {"images": 64, "seconds": 61.0, "validation": {"bits_per_dim": 9.5}},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.slow
def test_the_measurement_and_its_card(run_folder, tmp_path):
    results, card, pictures = (tmp_path / name for name in ("tiny.json", "tiny.md", "pictures"))
    sizes = ("--images", 12, "--draws", 4, "--full", 5, "--steps", 8, "--samples", 4, "--sampling-steps", 2)
    paths = ("--run", run_folder, "--data", SLICE, "--output", results, "--pictures", pictures)
    command("measure", *paths, *sizes, "--threads", 1)
    measured = json.loads(results.read_text())
    assert list(measured["bounds"]) == ["fixed_small", "fixed_large", "learned_range"]
    for bound in measured["bounds"].values():
        assert bound["estimate"]["count"] == 12 and bound["full"]["bits_per_dimension"]["count"] == 5
        same = bound["estimate_minus_full_on_the_same"]
        assert same["holds_zero"] == (same["low"] <= 0 <= same["high"]) and same["count"] == 5
    assert "/somewhere" not in results.read_text() and measured["training"]["images_seen"] == 64
    assert {path.name for path in pictures.iterdir()} == {"tiny-terms.png", "tiny-samples.png"}
    command("card", "--results", results, "--output", card)
    text = card.read_text()
    for bound in measured["bounds"].values():
        assert f"{bound['estimate']['value']:.3f} [" in text
    assert "4 an image instead of 50" in text and "9.50 after 64" in text and "tiny-terms.png" in text
    assert "{" not in text.split("<details>")[0]
