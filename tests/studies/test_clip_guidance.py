"""The study of CLIP guidance runs on tiny components, its rows are of the pipeline it says, and its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_autoencoder, tiny_tokenizer
from tiny_classifier import tiny_image_unet
from tiny_clip import tiny_clip
from tiny_data import slices
from tiny_run import write_run

from guided_diffusers import ClassifierGuidedTextToImagePipeline, GuidedDDPMScheduler, ImagePipeline
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Judge, JudgeConfig, judge_images, read_images, save_judge
from guided_diffusers.evaluation.labelled import captions_by_class
from guided_diffusers.schedulers import describe_process

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_cards" / "fashion-32-clip-guided.json"


@pytest.mark.parametrize("contrast", [False, True])
def test_rows_are_of_the_pipeline_that_is_saved(contrast, load_script, run_script, tmp_path, capsys):
    scheduler = GuidedDDPMScheduler()
    torch.manual_seed(0)
    vae = tiny_autoencoder(block_out_channels=(4, 4, 8), sample_size=32)
    ImagePipeline(tiny_image_unet(2), scheduler, vae).save_pretrained(tmp_path / "denoiser" / "final")
    clip = tiny_clip(image={"in_channels": 2}, process=describe_process(scheduler))
    clip.save_pretrained(tmp_path / "clip" / "final")
    tiny_tokenizer().save_pretrained(tmp_path / "clip" / "final")
    for name in ("denoiser", "clip"):
        write_run(tmp_path / name, name)
    slices(tmp_path / "data")
    judge = Judge(JudgeConfig(num_classes=10, in_channels=1, image_size=32, width=4)).eval()
    facts = {"test_accuracy": {"value": 0.9375, "low": 0.93, "high": 0.94, "count": 9}}
    save_judge(judge, tmp_path / "judge.safetensors", training={"seed": 3}, **facts)
    options = ["--denoiser", tmp_path / "denoiser", "--clip", tmp_path / "clip", "--data", tmp_path / "data"]
    options += ["--judge", tmp_path / "judge.safetensors", "--output", tmp_path / "rows.json"]
    options += ["--save", tmp_path / "saved", "--scales", 0, 5, "--images-per-class", 2, "--steps", 2]
    options += ["--batch-size", 7, "--picture", tmp_path / "rows.png"] + ["--contrast"] * contrast
    run_script("studies/clip_guidance/measure", *options)
    results = json.loads((tmp_path / "rows.json").read_text())
    assert [row["guidance"][0]["scale"] for row in results["rows"]] == [0, 5]
    assert capsys.readouterr().out.count("agreement") == 2

    pipeline = ClassifierGuidedTextToImagePipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    (default,) = pipeline.config.default_guidance
    assert default["scale"] == results["best_scale"] and default["interval"] == [0.0, 100.0]
    captions = captions_by_class(read_images(tmp_path / "data" / "test.parquet"))
    images = pipeline(
        [texts[number] for texts in captions for number in range(2)],
        classifier_scale=5.0,
        contrast_prompts=[texts[0] for texts in captions] if contrast else None,
        num_inference_steps=2,
        generator=[generator_for(0, index) for index in range(20)],
        output_type="pt",
    ).images
    labels = torch.arange(10).repeat_interleave(2)
    found = judge_images(judge, (images * 255).round().to(torch.uint8)).argmax(1) == labels
    assert results["rows"][1]["agreement"]["value"] == pytest.approx(found.float().mean().item())
    check_card(results, load_script)
    assert Image.open(tmp_path / "rows.png").height > 10 * 64  # ten rows


def test_the_gentlest_scale_is_within_the_interval_of_the_best(load_script):
    script = load_script("studies/clip_guidance/measure")
    agreements = [{"value": value, "low": value - 0.05} for value in (0.5, 0.91, 0.95, 0.9)]
    assert script.gentlest(agreements, [1, 4, 8, 2]) == 2
    assert script.gentlest(agreements[:3], [1, 4, 8]) == 4
    assert script.gentlest(agreements[:1], [1]) == 1


def check_card(results, load_script):
    """Its figures are those of the JSON: others there, others here."""
    card = load_script("studies/clip_guidance/card").card
    text = card(results, "images", "rows.json")
    assert text.count("\n| ") == 1 + 2 and "runs/fashion_denoiser --clip runs/fashion_clip" in text
    assert "right on 93.8% [93.0, 94.0]" in text and "--seed 3" in text and "/somewhere" not in text
    assert ("--contrast" in text) == results["settings"]["contrast"]
    best = next(row for row in results["rows"] if row["guidance"][0]["scale"] == results["best_scale"])
    best["agreement"] = {"value": 0.87654, "low": 0.86, "high": 0.89, "count": 20}
    changed = card(results, "images", "rows.json")
    assert "87.7% [86.0, 89.0] of 20 images agree" in changed and "which reaches the 75%" in changed
    assert "87.7%" not in text and "does not reach the 75%" in text


def test_the_shipped_figures_and_their_card(load_script):
    results = json.loads(SHIPPED.read_text())
    agreement = {row["guidance"][0]["scale"]: row["agreement"] for row in results["rows"]}
    assert agreement[0]["high"] < 0.2 and agreement[results["best_scale"]]["low"] >= 0.75
    assert all(figure["count"] >= 500 for figure in agreement.values())
    card = load_script("studies/clip_guidance/card").card(results, "../docs/images", SHIPPED.name)
    assert SHIPPED.with_suffix(".md").read_text() == card
    assert (ROOT / "docs" / "images" / f"{SHIPPED.stem}.png").is_file()
