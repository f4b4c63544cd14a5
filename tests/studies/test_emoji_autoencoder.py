"""The comparison of emoji autoencoders, on tiny random models and a few made-up images."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from tiny_data import parquet

from guided_diffusers import VAEPipeline, pretrained
from guided_diffusers.evaluation import Judge, JudgeConfig, Reference, save_judge
from guided_diffusers.models import VariationalAutoencoder

ROOT = Path(__file__).parents[2]
STYLES = ("noto", "openmoji", "twemoji")
SHIPPED = ROOT / "model_cards" / "emoji-64-vae.json"


@pytest.fixture
def script(load_script):
    return load_script("studies/emoji_autoencoder/measure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Held-out images in three styles, two autoencoders, a classifier for features."""
    folder = tmp_path_factory.mktemp("emoji")
    pixels = torch.randint(256, (18, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    columns = {"style": [*STYLES] * 6, "name": [f"emoji {row}" for row in range(18)]}
    for split in ("train", "test"):
        parquet(folder / f"{split}.parquet", pixels, **columns)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = VariationalAutoencoder(block_out_channels=(4,), norm_num_groups=4, sample_size=64)
        model.set_latent_statistics([0.5] * 4, [2.0] * 4)
        model.save_pretrained(folder / name)
    save_judge(Judge(JudgeConfig(width=4, in_channels=3, image_size=64)), folder / "judge.safetensors")
    return folder


@pytest.mark.slow
def test_the_command_measures_and_draws_every_arm(run_script, folder, tmp_path):
    output, picture = tmp_path / "card" / "result.json", tmp_path / "docs" / "picture.png"
    options = ["--data", folder, "--arms", f"one={folder / 'one'}", f"two={folder / 'two'}"]
    options += ["--features", folder / "judge.safetensors", "--output", output, "--picture", picture]
    run_script("studies/emoji_autoencoder/measure", *options)
    result = json.loads(output.read_text())
    assert result["images"] == result["training_images"] == 18 and set(result["arms"]) == {"one", "two"}
    for arm in result["arms"].values():
        for figure in (arm["psnr_db"], arm["KD-judge"], arm["sharpness"], *arm["psnr_db_by_style"].values()):
            assert figure["low"] < figure["value"] < figure["high"]
        styles = arm["psnr_db_by_style"]
        assert set(styles) == set(STYLES) and {figure["count"] for figure in styles.values()} == {6}
        mean = sum(figure["value"] for figure in styles.values()) / 3
        assert mean == pytest.approx(arm["psnr_db"]["value"])
        assert arm["training"] is None  # of a folder that no run made
        assert arm["parameters"] > 1000 and 0 < 4e-6 * arm["parameters"] < arm["megabytes"] < 1
    means = {name: arm["psnr_db"]["value"] for name, arm in result["arms"].items()}
    difference = result["psnr_db_differences"]["two - one"]
    assert difference["value"] == pytest.approx(means["two"] - means["one"])
    assert PILImage.open(picture).size[1] > 3 * 128 and PILImage.open(picture).size[0] > 8 * 128


@pytest.mark.slow
def test_reconstructions_are_the_models_at_any_batch_size(script, folder):
    images = script.read_held_out(folder / "test.parquet").images
    made = [script.reconstruct(folder / "one", images, batch_size) for batch_size in (18, 5)]
    assert (made[0].int() - made[1].int()).abs().max() <= 1
    model = VariationalAutoencoder.from_pretrained(folder / "one")
    with torch.no_grad():
        expected = model.decode(model.encode(script.unit(images)).latent_dist.mean).sample.clamp(-1, 1)
    assert (script.unit(made[0]) - expected).abs().max() < 0.51 / 127.5 + 1e-4


def test_the_distance_of_perfect_reconstructions_is_zero(script):
    """And it grows with the noise on them."""
    generator = torch.Generator().manual_seed(0)
    real, noise = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator)
    assert script.paired_kernel_estimate(Reference(real), real, 20, 0).value == pytest.approx(0, abs=1e-9)
    near, far = (
        script.paired_kernel_estimate(Reference(real), real + scale * noise, 20, 0) for scale in (0.3, 2.0)
    )
    assert abs(near.value) < far.value


def test_the_picture_shows_the_styles_in_turn(script):
    styles = ["a"] * 50 + ["b"] * 3 + ["c"] * 50
    rows = script.chosen(styles, seed=1)
    assert len(set(rows)) == 8 and [styles[row] for row in rows] == list("abcabcab")
    assert rows != script.chosen(styles, seed=2)


def test_bad_arms_and_missing_data_are_named(script, folder, tmp_path):
    for arms in (["one"], [f"one={folder / 'none'}"], [f"one={folder / 'one'}"] * 2, [f"={folder}"]):
        with pytest.raises(ValueError, match="allowed: NAME=FOLDER"):
            script.folders(arms)
    with pytest.raises(FileNotFoundError, match="python training/data/emoji.py --fetch"):
        script.read_held_out(tmp_path / "test.parquet")


def test_the_verdict_follows_the_network_that_no_loss_has_seen(load_script):
    card = load_script("studies/emoji_autoencoder/card")

    def results(plain, perceptual):
        arms = {
            name: {"KD-efficientnet-lite1": {"value": value, "low": value - 1, "high": value + 1}}
            for name, value in (("plain", plain), ("perceptual", perceptual))
        }
        difference = {"value": -0.5, "low": -0.75, "high": -0.25}
        return {"arms": arms, "psnr_db_differences": {"perceptual - plain": difference}}

    assert card.better(results(1, 4)) == "plain" and card.better(results(4, 1)) == "perceptual"
    assert "**What ships is “L1, then L1”**" in card.verdict(results(1, 4))
    assert "lower one, beyond the intervals" in card.verdict(results(1, 4))
    assert "though not beyond the intervals" in card.verdict(results(2, 1))
    assert "-0.50 [-0.75, -0.25] dB" in card.verdict(results(2, 1))


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the figures have not been measured yet")
def test_shipped_card(load_script):
    """The card is what the command makes of its figures, and the checkpoint is the arm that it names."""
    measured, card = json.loads(SHIPPED.read_text()), load_script("studies/emoji_autoencoder/card")
    assert SHIPPED.with_suffix(".md").read_text() == card.card(measured, "../docs/images", SHIPPED.stem)
    assert (ROOT / "docs" / "images" / f"{SHIPPED.stem}.png").is_file()
    assert list(measured["arms"]) == ["l1", "plain", "perceptual"] and measured["images"] == 339
    seconds = [measured["arms"][arm]["training"]["seconds"] for arm in ("plain", "perceptual")]
    assert max(seconds) < 1.15 * min(seconds)  # about the same time
    files = [path for path in pretrained(SHIPPED.stem).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    shipped = VariationalAutoencoder.from_pretrained(pretrained(SHIPPED.stem) / "vae")
    assert shipped.num_parameters() == measured["arms"][card.better(measured)]["parameters"]


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the checkpoint is not there yet")
def test_the_shipped_checkpoint_copies_a_picture_that_it_cannot_know():
    """A red disc with a blue square in it, on white."""
    pipeline = VAEPipeline.from_pretrained(pretrained(SHIPPED.stem))
    drawn = PILImage.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawn).ellipse((8, 8, 56, 56), fill=(220, 40, 40))
    ImageDraw.Draw(drawn).rectangle((24, 24, 40, 40), fill=(40, 60, 200))
    [copy] = pipeline.reconstruct(drawn).images
    before, after = (torch.tensor(list(image.getdata())).double() / 255 for image in (drawn, copy))
    assert -10 * (before - after).square().mean().log10() > 22  # dB
