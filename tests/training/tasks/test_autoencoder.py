"""Training an autoencoder through its script and the shipped configuration, on real images, made tiny."""

import json

import pytest
import torch
import training_scripts
from diffusers import AutoencoderKL
from tiny_data import SLICE, fashion
from training_scripts import TRAINING, assert_goes_on_to_the_same_bits, records, weights

from guided_diffusers.core.randomness import randn_for
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.models.decoder_likelihoods import INITIAL_LOG_VARIANCE
from guided_diffusers.models.evidence import bound_of
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks import autoencoder_losses as losses
from guided_diffusers.training.tasks.autoencoder import AutoencoderTask, ExportConfig, LossConfig
from guided_diffusers.training.tasks.autoencoder_measures import (
    latent_statistics,
    measure_bound,
    measure_reconstructions,
)

TINY = {
    "data.path": SLICE,
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
    script = training_scripts.load("train_autoencoder")

    def run(name, *more, config="fashion_autoencoder"):
        options = {**TINY, "data.cache_dir": base / "cache", "training.output_dir": base / name}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        training_scripts.train(script, "--config", TRAINING / "configs" / f"{config}.yaml", *words, *more)
        return base / name

    return run


@pytest.fixture(scope="module")
def whole(train):
    """A run of the first stage, discriminator and all, without a stop."""
    return train("whole")


@pytest.fixture
def data(tmp_path):
    return fashion(tmp_path / "cache")


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
    first, *others = records(whole)
    assert not {"adversarial", "discriminator"} & set(first)
    assert all(any(name in record for record in others) for name in ("adversarial", "discriminator"))
    assert any("sharpness" in record.get("validation", {}) for record in others)
    assert len(list((whole / "validation").glob("*.png"))) == 2


def test_resuming_with_a_discriminator_is_bit_equal(train):
    _, parts = assert_goes_on_to_the_same_bits(train, 48)
    files = {name.partition(".")[0] for name in weights(parts / "checkpoints" / "000000000096")}
    assert {"modules/discriminator", "averaged/autoencoder", "optimizers/discriminator"} < files


def test_training_improves_reconstructions(train, whole, data):
    options = ("--num_images", 640, "--adversarial_weight", 0, "--ema_half_life_images", 30)
    longer = train("longer", *options)
    before, after = (
        measure_reconstructions(VariationalAutoencoder.from_pretrained(run / "final"), data, range(64))
        for run in (whole, longer)
    )
    assert after["psnr"] > before["psnr"] + 2 and after["l1"] < 0.75 * before["l1"], (before, after)


def test_the_second_stage_changes_the_decoder_and_no_latent(train, whole, data):
    options = ("--pretrained", whole / "final", "--denoiser", "null")
    second = train("second", *options, config="fashion_autoencoder_decoder")
    one, two = (VariationalAutoencoder.from_pretrained(run / "final") for run in (whole, second))
    assert one.config.latents_mean == two.config.latents_mean
    assert one.config.latents_std == two.config.latents_std
    images = data.pixels(range(8))
    with torch.no_grad():
        latents = one.encode(images).latent_dist.mean
        assert torch.equal(latents, two.encode(images).latent_dist.mean)
        assert not torch.equal(one.decode(latents).sample, two.decode(latents).sample)


@pytest.mark.parametrize("scaling", [0.18215, 1.0])
def test_a_decoder_of_others_keeps_the_scale_of_their_latents(data, tmp_path, scaling):
    kl = AutoencoderKL(1, 1, block_out_channels=(4,), norm_num_groups=4, scaling_factor=scaling)
    task = task_of(VariationalAutoencoder.from_autoencoder_kl(kl), data, decoder_only=True)
    task.save(tmp_path, task.modules)
    images, saved = data.pixels(range(4)), VariationalAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        latents = kl.encode(images).latent_dist.mean * scaling
        torch.testing.assert_close(saved.encode(images).latent_dist.mean, latents, atol=1e-6, rtol=1e-5)


def test_losses_do_not_depend_on_how_a_batch_is_split(data):
    """Every random number belongs to a position: the mean over halves is the whole."""
    task = task_of(spatial(), data)

    def loss(numbers):
        batch = task.batch(numbers, [100 + number for number in numbers])
        return next(task.losses(batch))[1]

    whole, halves = loss(list(range(8))), (loss([0, 1, 2, 3]) + loss([4, 5, 6, 7])) / 2
    torch.testing.assert_close(whole, halves, atol=1e-6, rtol=1e-5)


def spatial():
    torch.manual_seed(0)
    return VariationalAutoencoder(1, 1, block_out_channels=(4,), norm_num_groups=4, latent_channels=2)


def small(**overrides):
    """A tiny model of whole images as the shipped slice has them, 32x32 grey."""
    torch.manual_seed(0)
    config = {"block_out_channels": (4, 4), "norm_num_groups": 4, "latent_channels": 3}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    config |= {"latent": "vector", "likelihood": "gaussian"}
    return VariationalAutoencoder(1, 1, **{**config, **overrides})


def task_of(model, data, training=None, decoder_only=False, **loss):
    training = training or TrainingConfig(output_dir="unused", batch_size=8)
    export = ExportConfig()
    return AutoencoderTask(
        model, None, data, data, LossConfig(**loss), export, training, decoder_only=decoder_only
    )


BOUND = {"reconstruction": "likelihood"}


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "bernoulli", "discretised_logistic", "discretised_gaussian"]
)
def test_the_likelihood_s_loss_is_the_negative_bound_a_dimension(data, likelihood):
    model = small(likelihood=likelihood)
    task = task_of(model, data, **BOUND, beta=0.5, free_bits=0.1, dequantise=likelihood == "gaussian")
    batch = task.batch(list(range(8)), list(range(100, 108)))
    _, loss, metrics = next(task.losses(batch))
    posterior = model.posterior(batch["images"])
    output = model.decoder_output(posterior.mean + posterior.std * batch["noise"])
    log_prob = model.decoder_likelihood.log_prob(output, batch["images"])
    bound = bound_of(log_prob, posterior, model.decoder_likelihood, 1024, beta=0.5, free_bits=0.1)
    torch.testing.assert_close(loss, -bound.objective.mean() / 1024)
    torch.testing.assert_close(metrics["reconstruction"], -bound.reconstruction.mean().detach() / 1024)
    torch.testing.assert_close(
        metrics["kl"], losses.kl_per_image(posterior.mean, posterior.logvar).mean().detach()
    )
    assert ("log_variance" in metrics) == (likelihood != "bernoulli")
    plain = small(likelihood=None)
    plain.load_state_dict(model.state_dict(), strict=False)
    weight = losses.kl_weight_from_sum(0.5, 1, 32, 32)
    error = task_of(plain, data, kl_weight=weight)
    *_, summed = next(error.losses(batch))
    assert weight * summed["kl"].item() == pytest.approx(0.5 * bound.kl.mean().item() / 1024)


def test_the_learned_variance_is_optimised_without_weight_decay_and_learns(data):
    model, training = small(), TrainingConfig(output_dir="unused", batch_size=8, weight_decay=0.3)
    task = task_of(model, data, training, **BOUND)
    optimizer, variance = task.optimizers["autoencoder"], model.decoder_likelihood.log_variance
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays.pop(id(variance)) == 0 and set(decays.values()) == {0.3}
    assert len(decays) + 1 == len(list(model.parameters()))
    before = variance.item()
    next(task.losses(task.batch(list(range(8)), list(range(8)))))[1].backward()
    optimizer.step()
    assert variance.item() != before


def test_noise_fills_the_bins_by_seed_and_position(data):
    one, again, other = (
        task_of(
            small(), data, TrainingConfig(output_dir="unused", seed=seed), **BOUND, dequantise=True
        ).batch(rows, positions)["images"]
        for seed, rows, positions in ((0, [3, 4], [7, 8]), (0, [4], [8]), (1, [4], [8]))
    )
    noise = one - data.pixels([3, 4])
    assert 0.9 / 255 < noise.abs().max() <= 1.001 / 255 and abs(noise.mean()) < 1e-4
    assert torch.equal(one[1:], again) and not torch.equal(again, other)
    assert torch.equal(task_of(small(), data, **BOUND).batch([3], [7])["images"], data.pixels([3]))


def test_what_does_not_go_together_is_refused(data):
    for model, loss, message in (
        (small(likelihood=None), BOUND, "needs an autoencoder.likelihood, which is None"),
        (small(posterior="deterministic"), BOUND, "'deterministic', which has no bound"),
        (small(), {}, "reconstruction is 'error' and would leave the variance of likelihood 'gaussian'"),
    ):
        with pytest.raises(ValueError, match=message):
            task_of(model, data, **loss)
    assert task_of(small(likelihood="bernoulli"), data)  # has no variance
    for name in ("beta", "free_bits"):
        with pytest.raises(ValueError, match=f"{name} is -"):
            LossConfig(**{name: -1.0})


def test_a_plain_autoencoder_has_no_divergence_and_no_noise(data):
    model = small(posterior="deterministic", likelihood=None)
    task = task_of(model, data, squared=1.0)
    batch = task.batch(list(range(8)), list(range(8)))
    _, loss, metrics = next(task.losses(batch))
    assert set(metrics) == {"reconstruction"}
    torch.testing.assert_close(loss, (model(batch["images"]).sample - batch["images"]).square().mean())


SHIPPED = ["fashion_vae_vector", "fashion_vae_spatial", "fashion_autoencoder_plain"]


@pytest.mark.parametrize(
    "config", [SHIPPED[0], *(pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED[1:])]
)
def test_the_shipped_configurations_train_save_and_resume_to_the_bit(train, data, config):
    def run(name, *words):
        return train(f"{config}/{name}", *words, config=config)

    whole, _ = assert_goes_on_to_the_same_bits(run, 48)
    model = VariationalAutoencoder.from_pretrained(whole / "final")
    shape = {"spatial": (4, 7, 7), "vector": (16, 1, 1)}[model.config.latent]
    assert model.latent_shape() == shape and None not in (model.config.latents_mean, model.config.latents_std)
    figures = json.loads((whole / "final" / "metrics.json").read_text())
    if model.config.likelihood is None:
        assert "elbo" not in figures and model.config.posterior == "deterministic"
        return
    images = fashion(data.config.cache_dir, crop=28, resolution=28)
    expected = measure_bound(model, images, range(64), noisy=True)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert figures["elbo"] < -500 and 7 < figures["bits_per_dim"] < 20
    assert model.decoder_likelihood.log_variance.item() != INITIAL_LOG_VARIANCE
    assert all("bits_per_dim" in record for record in records(whole) if "autoencoder" in record)


def test_the_bound_that_is_measured_depends_on_no_batch(data):
    model = small().eval()
    whole = measure_bound(model, data, range(10), noisy=True, seed=3)
    assert measure_bound(model, data, range(10), noisy=True, seed=3, batch_size=3) == pytest.approx(
        whole, rel=1e-5
    )
    assert measure_bound(model, data, range(10), noisy=True, seed=4)["elbo"] != whole["elbo"]
    assert measure_bound(model, data, range(10), noisy=False, seed=3)["elbo"] != whole["elbo"]


def test_an_adversarial_weight_needs_a_discriminator(data):
    with pytest.raises(ValueError, match="adversarial_weight is 0.5: it needs a discriminator"):
        task_of(spatial(), data, adversarial_weight=0.5)


def test_latent_statistics_are_those_of_draws_from_the_raw_posterior(data):
    model = spatial()
    with torch.no_grad():
        model.quant_conv.bias.copy_(torch.tensor([3.0, -2.0, 0.0, 2.0]))
        mean, std = latent_statistics(model, data, range(64), seed=5, batch_size=10)
        posterior = model.posterior(data.pixels(range(64)))
        latents = posterior.mean + posterior.std * randn_for(5, range(64), posterior.mean.shape[1:])
    torch.testing.assert_close(mean.float(), latents.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std.float(), latents.std((0, 2, 3)), atol=1e-3, rtol=1e-3)


def test_bad_configurations_name_the_field(train, capsys):
    with pytest.raises(ValueError, match="squared is "):
        LossConfig(squared=2.0)
    with pytest.raises(ValueError, match="kl_weight is -"):
        LossConfig(kl_weight=-1.0)
    for override, message in (
        (("--decoder_only", True), "decoder_only needs a trained encoder"),
        (("--loss.adversarial_wait", 1), "unknown key 'loss.adversarial_wait'"),
    ):
        with pytest.raises(SystemExit):
            train("bad", *override)
        assert message in capsys.readouterr().err
