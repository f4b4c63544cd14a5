"""Training an autoencoder through its script and the shipped configuration, on real images, made tiny."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.randomness import randn_for
from guided_diffusers.training.autoencoder import AutoencoderTask, ExportConfig, LossConfig
from guided_diffusers.training.autoencoder_measures import latent_statistics, measure_reconstructions
from guided_diffusers.training.config import TrainingConfig
from guided_diffusers.training.data import DataConfig, ImageTextDataset

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
TINY = {
    "data.path": ROOT / "tests" / "data" / "fashion_slice.parquet",
    "export.validation_split": "train",  # the slice has one split
    "export.validation_rows": 16,
    "export.statistics_rows": 64,
    "autoencoder.block_out_channels": [4, 4, 8],
    "autoencoder.norm_num_groups": 4,
    "discriminator.base_channels": 8,
    "training.num_images": 96,
    "training.batch_size": 8,
    "training.warmup_images": 8,
    "training.mixed_precision": "no",
    "training.log_every_images": 16,
    "training.checkpoint_every_images": 48,
    "training.validate_every_images": 48,
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs the script with a shipped configuration made tiny; gives the folder of the run."""
    base = tmp_path_factory.mktemp("runs")
    path = ROOT / "training" / "train_autoencoder.py"
    spec = importlib.util.spec_from_file_location("train_autoencoder", path)
    script = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, script)  # where dataclasses look their annotations up
        spec.loader.exec_module(script)

        def run(name, config="fashion_autoencoder.yaml", **overrides):
            options = {**TINY, "data.cache_dir": base / "cache", "training.output_dir": base / name}
            options |= {key.replace("__", "."): value for key, value in overrides.items()}
            words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            patch.setattr("sys.argv", ["train_autoencoder.py", "--config", str(CONFIGS / config), *words])
            script.main()
            return base / name

        yield run


@pytest.fixture(scope="module")
def whole(train):
    """A run of the first stage, discriminator and all, without a stop."""
    return train("whole")


@pytest.fixture
def data(tmp_path):
    path = str(TINY["data.path"])
    return ImageTextDataset(DataConfig(path=path, channels=1, cache_dir=str(tmp_path / "cache")))


def test_the_command_leaves_a_model_with_standardised_latents(whole, data):
    model = VariationalAutoencoder.from_pretrained(whole / "final")
    posterior = model.encode(data.pixels(range(64))).latent_dist
    latents = posterior.mean + posterior.std * randn_for(0, range(64), posterior.mean.shape[1:])
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    half = VariationalAutoencoder.from_pretrained(whole / "final", variant="fp16")
    assert half.config.latents_std == model.config.latents_std
    torch.testing.assert_close(
        half.decoder.conv_out.weight, model.decoder.conv_out.weight, atol=1e-3, rtol=1e-3
    )
    figures = json.loads((whole / "final" / "metrics.json").read_text())
    assert figures["images"] == 64
    expected = measure_reconstructions(model, data, range(64))
    assert figures["psnr"] == pytest.approx(expected["psnr"], rel=1e-4)
    records = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert any("adversarial" in record for record in records) and "adversarial" not in records[0]
    assert "discriminator" not in records[0] and any("discriminator" in record for record in records)
    assert any("sharpness" in record.get("validation", {}) for record in records)
    assert len(list((whole / "validation").glob("*.png"))) == 2


def test_resuming_with_a_discriminator_is_bit_equal(train, whole):
    train("parts", training__stop_at_images=48)
    assert not (whole.parent / "parts" / "final").exists()
    parts = train("parts")
    for name in (
        "modules/autoencoder",
        "modules/discriminator",
        "averaged/autoencoder",
        "optimizers/discriminator",
    ):
        one, two = (load_file(run / f"checkpoints/000000000096/{name}.safetensors") for run in (whole, parts))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_training_improves_reconstructions(train, whole, data):
    longer = train(
        "longer", training__num_images=640, loss__adversarial_weight=0, training__ema_half_life_images=30
    )
    before, after = (
        measure_reconstructions(VariationalAutoencoder.from_pretrained(run / "final"), data, range(64))
        for run in (whole, longer)
    )
    assert after["psnr"] > before["psnr"] + 2 and after["l1"] < 0.75 * before["l1"], (before, after)


def test_the_second_stage_changes_the_decoder_and_no_latent(train, whole, data):
    second = train("second", "fashion_autoencoder_decoder.yaml", pretrained=whole / "final", denoiser="null")
    one, two = (VariationalAutoencoder.from_pretrained(run / "final") for run in (whole, second))
    assert (
        one.config.latents_mean == two.config.latents_mean
        and one.config.latents_std == two.config.latents_std
    )
    images = data.pixels(range(8))
    with torch.no_grad():
        latents = one.encode(images).latent_dist.mean
        assert torch.equal(latents, two.encode(images).latent_dist.mean)
        assert not torch.equal(one.decode(latents).sample, two.decode(latents).sample)


def test_losses_do_not_depend_on_how_a_batch_is_split(data):
    """Every random number belongs to a position: the mean over halves is the whole."""
    torch.manual_seed(0)
    model = VariationalAutoencoder(1, 1, block_out_channels=(4,), norm_num_groups=4, latent_channels=2)
    training = TrainingConfig(output_dir="unused", batch_size=8)
    task = AutoencoderTask(model, None, data, data, LossConfig(), ExportConfig(), training)

    def loss(numbers):
        batch = task.batch(numbers, [100 + number for number in numbers])
        return next(task.losses(batch))[1]

    whole, halves = loss(list(range(8))), (loss([0, 1, 2, 3]) + loss([4, 5, 6, 7])) / 2
    torch.testing.assert_close(whole, halves, atol=1e-6, rtol=1e-5)


def test_an_adversarial_weight_needs_a_discriminator(data):
    model = VariationalAutoencoder(1, 1, block_out_channels=(4,), norm_num_groups=4)
    with pytest.raises(ValueError, match="adversarial_weight is 0.5: it needs a discriminator"):
        loss, training = LossConfig(adversarial_weight=0.5), TrainingConfig(output_dir="unused")
        AutoencoderTask(model, None, data, data, loss, ExportConfig(), training)


def test_latent_statistics_are_those_of_draws_from_the_raw_posterior(data):
    torch.manual_seed(0)
    model = VariationalAutoencoder(1, 1, block_out_channels=(4,), norm_num_groups=4, latent_channels=2)
    with torch.no_grad():
        model.quant_conv.bias.copy_(torch.tensor([3.0, -2.0, 0.0, 2.0]))
        mean, std = latent_statistics(model, data, range(64), seed=5, batch_size=10)
        posterior = model.posterior(data.pixels(range(64)))
        latents = posterior.mean + posterior.std * randn_for(5, range(64), posterior.mean.shape[1:])
    torch.testing.assert_close(mean.float(), latents.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std.float(), latents.std((0, 2, 3)), atol=1e-3, rtol=1e-3)


def test_bad_configurations_name_the_field(train, capsys):
    with pytest.raises(ValueError, match="squared must lie in"):
        LossConfig(squared=2.0)
    with pytest.raises(ValueError, match="kl_weight must be 0 or more"):
        LossConfig(kl_weight=-1.0)
    for override, message in (
        ({"decoder_only": True}, "decoder_only needs a trained encoder"),
        ({"loss__adversarial_wait": 1}, "unknown key 'loss.adversarial_wait'"),
    ):
        with pytest.raises(SystemExit):
            train("bad", **override)
        assert message in capsys.readouterr().err
