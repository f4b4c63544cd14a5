"""The emoji autoencoder's configurations: sizes, a fair comparison, and a tiny run of each."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import parquet
from training_scripts import load, read, records, same, train, weights

from guided_diffusers.evaluation import Judge, JudgeConfig, save_judge

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"


@pytest.fixture(scope="module")
def script():
    return load("train_autoencoder")


def config_of(script, name, *words):
    return read(script, "--config", CONFIGS / f"{name}.yaml", *words)


def test_the_model_has_latents_of_a_quarter_and_fits_eight_megabytes(script):
    config = config_of(script, "emoji_autoencoder")
    model = script.make_autoencoder(config)
    assert model.num_parameters() * 2 < 8e6 and config.export.float16  # float16
    with torch.no_grad():
        assert model.posterior(torch.zeros(1, 3, 64, 64)).mean.shape == (1, 4, 16, 16)
    assert config.loss.perceptual_weight == config.loss.adversarial_weight == 0


def test_the_arms_differ_in_their_losses_alone(script):
    """And in the number of images, so that both take the same time."""
    plain, full = (asdict(config_of(script, f"emoji_autoencoder_{arm}")) for arm in ("plain", "perceptual"))
    assert plain["loss"]["kl_weight"] == full["loss"]["kl_weight"]
    assert full["loss"]["perceptual_weight"] > 0 < full["loss"]["adversarial_weight"]
    assert plain["loss"]["perceptual_weight"] == plain["loss"]["adversarial_weight"] == 0
    assert plain["training"]["num_images"] > full["training"]["num_images"]
    for config in (plain, full):
        del config["loss"], config["discriminator"]
        del config["training"]["output_dir"], config["training"]["num_images"]
    assert plain == full and plain["pretrained"] == "runs/emoji_autoencoder/final"


def test_the_perceptual_arm_continues_from_the_first_run_and_resumes_to_the_bit(
    script, tmp_path, monkeypatch
):
    """Tiny: random images, a random classifier for features."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")  # blind to rebuilt files
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        parquet(tmp_path / "data" / f"{split}.parquet", pixels)
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(width=4, in_channels=3, image_size=64))
    save_judge(judge, tmp_path / "judge.safetensors")
    tiny = {"data.path": tmp_path / "data", "data.cache_dir": tmp_path / "cache", "training.batch_size": 4}
    tiny |= {
        "training.checkpoint_every_images": 8,
        "training.num_images": 16,
        "discriminator.base_channels": 8,
    }

    def run(name, config, **options):
        options = {**tiny, "training.output_dir": tmp_path / name, **options}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        train(script, "--config", CONFIGS / f"{config}.yaml", *words)
        return tmp_path / name

    widths = {"autoencoder.block_out_channels": [4, 4, 8], "autoencoder.norm_num_groups": 4}
    first = run("first", "emoji_autoencoder", **widths)
    arm = {"pretrained": first / "final", "loss.perceptual_network": tmp_path / "judge.safetensors"}
    whole = run("whole", "emoji_autoencoder_perceptual", **arm)
    run("parts", "emoji_autoencoder_perceptual", **arm, **{"training.stop_at_images": 8})
    parts = run("parts", "emoji_autoencoder_perceptual", **arm)
    assert same(weights(whole / "final"), weights(parts / "final"))
    assert {"perceptual", "adversarial"} <= records(whole)[-1].keys()
    saved = {path.name for path in (whole / "checkpoints").glob("*/modules/*")}
    assert saved == {"autoencoder.safetensors", "discriminator.safetensors"}
