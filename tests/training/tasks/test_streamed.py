"""Scripts on a stream: tiny runs, which go on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_data import slices
from training_scripts import BRIEF, ENCODER, TEXT_MODEL, assert_goes_on_to_the_same_bits, load, records, train

UNET = {**ENCODER, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
TEXT = {"vocabulary_size": 600, "context_length": 12, "model": TEXT_MODEL}
MEASURED = {"images": 12, "noise_bins": 3}
AWARE = {"noise_aware": True, "scheduler_arguments": {"num_train_timesteps": 20}}
IMAGE = {**ENCODER, "attention_head_dim": 4, "pool": "adaptive"}
UPSAMPLER = {"scale": 4, "crop": 16, "drawing": {"images": 4, "num_inference_steps": 2}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": (
        "train_autoencoder",
        {
            "autoencoder": {**ENCODER, "down_block_types": ["DownEncoderBlock2D"] * 2}
            | {"up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 2},
            "discriminator": {"base_channels": 8},
            "export": {"validation_rows": 16, "statistics_rows": 16},
        },
    ),
    "classifier": ("train_classifier", {"label_column": "label", "classifier": ENCODER}),
    "classifier of noised latents": (
        "train_classifier",
        {**AWARE, "label_column": "label", "classifier": IMAGE, "autoencoder": "fashion-32/vae"},
    ),
    "clip": ("train_clip", {**AWARE, "projection_dim": 8, "text": TEXT, "image": IMAGE}),
    "upsampler": (
        "train_upsampler",
        {**UPSAMPLER, "unet": {**UNET, "add_attention": False}, "told": "nothing"},
    ),
    "upsampler with captions": (
        "train_upsampler",
        {
            **UPSAMPLER,
            "told": "captions",
            "text": TEXT,
            "unet": {**ENCODER, "attention_head_dim": 2}
            | {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
            | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]},
        },
    ),
}


SLOW = set(CASES) - {"classifier"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_a_streamed_run_goes_on_to_the_same_bits(case: str, tmp_path: Path) -> None:
    script, tree = CASES[case]
    captions = "text" if "text" in tree else None
    data = {"path": str(slices(tmp_path / "data")), "channels": 1, "caption_column": captions}
    data |= {"stream": True, "shuffle_buffer": 16, "cache_dir": str(tmp_path / "cache")}
    tree = {**tree, "data": data, "training": {**BRIEF, "num_images": 32, "log_every_images": 16}}
    if script in ("train_classifier", "train_clip"):
        tree["validation"] = MEASURED

    def run(name: str, *more: str) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        train(load(script), "--config", tmp_path / "tiny.yaml", "--output_dir", tmp_path / name, *more)
        return tmp_path / name

    whole, _ = assert_goes_on_to_the_same_bits(run, 16)
    assert [record["rows_skipped"] for record in records(whole) if "rows_skipped" in record] == [0, 0]
