"""Training of CLIP through the script, on tiny real components: clean and noise-aware."""

import json
from functools import partial

import pytest
import torch
import yaml
from PIL import Image
from tiny_data import SLICE
from training_scripts import (
    BRIEF,
    ENCODER,
    TEXT_MODEL,
    TRAINING,
    assert_goes_on_to_the_same_bits,
    load,
    read,
    records,
    train,
    weights,
)
from transformers import CLIPModel, CLIPTokenizer

from guided_diffusers import GuidedDDPMScheduler, NoiseAwareCLIP, NoiseLevel
from guided_diffusers.core.condition import tokenize
from guided_diffusers.evaluation.clip import ClipScorer
from guided_diffusers.schedulers import describe_process

TINY = {
    "training": BRIEF,
    "data": {"path": str(SLICE), "crop": 28, "resolution": 14, "channels": 1},
    "projection_dim": 8,
    "text": {"vocabulary_size": 600, "context_length": 12, "model": TEXT_MODEL},
    "validation": {"split": "train[:20]", "images": 12, "noise_bins": 3},
}
CLEAN = {
    **TINY,
    "image": {
        "patch_size": 7,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
NOISE_AWARE = {
    **TINY,
    "noise_aware": True,
    "image": {**ENCODER, "attention_head_dim": 4, "pool": "adaptive"},
    "scheduler_arguments": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
}


@pytest.fixture(scope="module")
def script():
    return load("train_clip")


@pytest.fixture
def run(script, tmp_path, tmp_path_factory):
    """Run the script's main in this process; gives the run's folder."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")

    def run_script(name, *more, tree=NOISE_AWARE):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        paths = ("--config", str(tmp_path / "tiny.yaml"), "--data.cache_dir", cache)
        output = ("--output_dir", str(tmp_path / name))
        train(script, *paths, *output, *more)
        return tmp_path / name

    return run_script


LONG = ("--num_images", "2000", "--checkpoint_every_images", "0", "--validate_every_images", "0")
LONG += ("--learning_rate", "3e-3", "--batch_size", "20", "--validation.split", "train")


def test_it_learns_which_caption_is_an_images(run):
    """Real images of ten classes with six captions each; by chance one class in ten is right."""
    folder = run("run", *LONG, tree=CLEAN)
    [report] = json.loads((folder / "final" / "metrics.json").read_text())
    assert report["accuracy"]["count"] == 64 and report["accuracy"]["value"] > 0.5
    losses = [record["clip"] for record in records(folder)]
    assert losses[-1] < losses[0] - 0.5
    clip = CLIPModel.from_pretrained(folder / "final", use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "final")
    assert clip.config.vision_config.num_channels == 1 and clip.config.projection_dim == 8
    assert len(tokenizer) == clip.config.text_config.vocab_size and tokenizer.model_max_length == 12
    assert not list(folder.rglob("*.bin"))


def test_noise_aware_it_tells_captions_apart_where_the_noise_lets_it(run):
    folder = run("run", *LONG)
    reports = json.loads((folder / "final" / "metrics.json").read_text())
    clear, _, noisy = (report["accuracy"]["value"] for report in reports)
    assert clear > 0.3 and clear > noisy + 0.1 and len(reports) == 3
    assert reports[0]["gradient_norm"]["value"] > 0
    clip = NoiseAwareCLIP.from_pretrained(folder / "final")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "final")
    texts = clip.encode_text(tokenize(tokenizer, ["a photo of a bag", "an ankle boot"])[0])
    level = NoiseLevel(alpha=1.0, sigma=0.0, timestep=torch.tensor(0))
    assert clip.similarity(torch.zeros(2, 1, 14, 14), level, texts).shape == (2,)


@pytest.mark.parametrize(
    ("tree", "more"),
    [pytest.param(CLEAN, (), marks=pytest.mark.slow), (NOISE_AWARE, ("--image.dropout", "0.2"))],
    ids=["clean", "noise-aware"],
)
def test_the_same_command_goes_on_to_the_same_bits(run, tree, more):
    more = (*more, "--validate_every_images", "0", "--final_images", "4")
    assert_goes_on_to_the_same_bits(partial(run, tree=tree), 24, *more)


def test_in_latents_it_says_what_it_was_trained_on(run, tiny_folder):
    options = ("--autoencoder", str(tiny_folder / "vae"), "--crop", "null", "--resolution", "16")
    folder = run("run", *options)
    clip = NoiseAwareCLIP.from_pretrained(folder / "final")
    scheduler = GuidedDDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    assert clip.config.process == describe_process(scheduler)
    config = clip.image_encoder.config
    assert (config.in_channels, config.sample_size, config.num_classes) == (2, 8, 8)
    validation = records(folder)[-1]["validation"]
    assert len(validation["retrieval_by_noise"]) == len(validation["gradient_norm_by_noise"]) == 3
    assert Image.open(folder / "validation" / "000000000048.png").size[0] > 500


def test_of_three_channels_the_clip_score_takes_it_as_it_is(run):
    options = ("--channels", "3", "--num_images", "16", "--validate_every_images", "0", "--crop", "null")
    folder = run("run", *options, "--resolution", "28", tree=CLEAN)
    scorer = ClipScorer.from_pretrained(folder / "final")
    images = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    expected = scorer.model.get_image_features(pixel_values=images / 127.5 - 1).pooler_output
    expected = torch.nn.functional.normalize(expected.detach(), dim=1)
    torch.testing.assert_close(scorer.image_features(images), expected, rtol=0, atol=1e-5)
    assert scorer.text_features(["a bag"]).shape == (1, 8)


def test_it_goes_on_from_a_trained_one(run):
    first = run("first", "--num_images", "16", "--final_images", "2", "--validate_every_images", "0")
    options = ("--pretrained", str(first / "final"), "--learning_rate", "1e-9", "--num_images", "8")
    second = run("second", *options, "--final_images", "2", "--validate_every_images", "0")
    expected, found = weights(first / "final"), weights(second / "final")
    assert all((expected[name] - found[name]).abs().max() < 1e-6 for name in expected)


@pytest.mark.parametrize(
    ("tree", "more", "words"),
    [
        (NOISE_AWARE, ("--validation.split", "train[:1]"), "held-out captions are all 'ankle boot'"),
        (NOISE_AWARE, ("--data.caption_column", "null"), "caption_column is None"),
        (NOISE_AWARE, ("--image.num_classes", "3"), "image_config is .*without num_classes"),
        (NOISE_AWARE, ("--text.vocabulary_size", "300"), "vocabulary_size is 300"),
    ],
)
def test_what_cannot_be_trained_is_named(run, tree, more, words):
    with pytest.raises(ValueError, match=words):
        run("run", *more, tree=tree)


def test_a_model_of_another_process_is_not_gone_on_with(run):
    first = run("first", "--num_images", "8", "--final_images", "2", "--validate_every_images", "0")
    with pytest.raises(ValueError, match="the clip was trained for another process"):
        run("second", "--pretrained", str(first / "final"), "--scheduler_arguments.num_train_timesteps", "30")


def test_latents_are_a_noise_aware_models(run, capsys):
    with pytest.raises(SystemExit):
        run("run", "--autoencoder", "fashion-32/vae", tree=CLEAN)
    assert "autoencoder is of a noise-aware model" in capsys.readouterr().err


def test_the_configuration_that_ships_is_read(script, capsys):
    path = TRAINING / "configs" / "fashion_noise_aware_clip.yaml"
    with pytest.raises(SystemExit) as ended:
        read(script, "--config", path, "--dry_run")
    config = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and config["noise_aware"] and config["autoencoder"] == "fashion-32/vae"
