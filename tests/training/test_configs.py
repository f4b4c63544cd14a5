"""What the configurations of the scripts that train denoisers resolve to, and what they refuse."""

import json

import pytest
import torch
from training_scripts import TRAINING, load, read

from guided_diffusers import GuidedDDPMScheduler, VariationalAutoencoder, pretrained
from guided_diffusers.store.checkpoints import component_source


@pytest.mark.parametrize(
    "name", ["fashion_unconditional", "fashion_latent_unconditional", "fashion_latent_class"]
)
def test_every_recipe_without_text_resolves_to_networks_that_fit(name):
    script = load("train_unconditional")
    config = read(script, "--config", TRAINING / "configs" / f"{name}.yaml")
    classes = 10 if config.label_column else None
    vae = None
    if config.autoencoder is not None:
        vae = VariationalAutoencoder.from_pretrained(component_source(config.autoencoder))
        shipped = GuidedDDPMScheduler.from_pretrained(pretrained("fashion-32") / "scheduler").config
        assert {**shipped, **config.scheduler} == dict(shipped)
    unet = script.make_unet(config, vae, config.scheduler.get("variance_type") == "learned_range", classes)
    assert unet.config.num_class_embeds == (11 if classes else None)
    size = unet.config.sample_size
    output = unet(torch.zeros(1, unet.config.in_channels, size, size), 1, classes and torch.tensor([10]))
    assert output.sample.shape == (1, unet.config.out_channels, size, size)
    assert 1.5e6 < sum(parameter.numel() for parameter in unet.parameters()) < 4e6


@pytest.mark.parametrize(
    ("script", "recipe", "expected"),
    [
        ("train_text_to_image", "fashion_text_to_image", {"weighting": "uniform", "caption_dropout": 0.1}),
        ("train_text_to_image", "tiny_text_to_image", {"weighting": "min_snr", "loss": "simple"}),
        ("train_unconditional", "fashion_unconditional", {"weighting": "uniform", "loss": "hybrid"}),
        ("train_unconditional", "fashion_latent_class", {"levels": "uniform", "class_dropout": 0.1}),
    ],
)
def test_a_recipe_says_what_it_learns(script, recipe, expected, capsys):
    given = ["--data.path", "x", "--autoencoder", "y"] if recipe == "tiny_text_to_image" else []
    with pytest.raises(SystemExit) as exit:
        read(load(script), "--config", TRAINING / "configs" / f"{recipe}.yaml", *given, "--dry_run")
    assert exit.value.code == 0
    config = json.loads(capsys.readouterr().out)
    assert expected.items() <= {**config["objective"], **config["denoising"]}.items()
    assert len((TRAINING / f"{script}.py").read_text().splitlines()) < 150


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--text.encoder frozen", "text.pretrained"),
        ("--caption_dropout 1.5", "caption_dropout is 1.5"),
        ("--min_snr_gamma 0", "min_snr_gamma is 0"),
        ("--bound_weight 0", "bound_weight is 0"),
        ("--denoising.weighting snr", "is 'snr'; allowed: 'uniform', 'min_snr'"),
    ],
)
def test_bad_options_are_named_before_anything_is_loaded(arguments, tmp_path, capsys, line, message):
    with pytest.raises(SystemExit):
        read(load("train_text_to_image"), *arguments(tmp_path), *line.split())
    assert message in capsys.readouterr().err
