"""Training of classifiers through the script, on tiny real components: clean, as a probe, noise-aware."""

import json
import logging
from functools import partial

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_autoencoder
from tiny_data import SLICE
from training_scripts import (
    BRIEF,
    ENCODER,
    TRAINING,
    assert_goes_on_to_the_same_bits,
    load,
    read,
    records,
    train,
)

from guided_diffusers import GuidedDDPMScheduler, pretrained
from guided_diffusers.models import ImageClassifier, NoiseAwareClassifier
from guided_diffusers.schedulers import describe_process
from guided_diffusers.training.data.labels import stratified_subset
from guided_diffusers.training.engine.config import build_config
from guided_diffusers.training.tasks.classifier import ObjectiveConfig
from guided_diffusers.training.tasks.encoder_start import start_from_encoder

SCRIPT = TRAINING / "train_classifier.py"
CLEAN = {**ENCODER, "down_block_types": ["DownEncoderBlock2D"] * 2, "mid_block_add_attention": False}
NOISE_AWARE = {**ENCODER, "attention_head_dim": 4, "pool": "adaptive"}
TINY = {
    "training": BRIEF,
    "data": {"path": str(SLICE), "caption_column": None, "crop": 28, "resolution": 14, "channels": 1},
    "validation": {"split": "train[:20]", "images": 12, "noise_bins": 3},
}
NOISE_AWARE_TREE = {
    **TINY,
    "noise_aware": True,
    "classifier": NOISE_AWARE,
    "scheduler_arguments": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
}


@pytest.fixture(scope="module")
def script():
    return load("train_classifier")


@pytest.fixture
def run(script, tmp_path, tmp_path_factory):
    """Run the script's main in this process; gives the run's folder."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")

    def run_script(name, *more, tree=None):
        tree = {**TINY, "classifier": {**CLEAN, "pool_size": 2}} if tree is None else tree
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        paths = ("--config", str(tmp_path / "tiny.yaml"), "--data.cache_dir", cache)
        output = ("--output_dir", str(tmp_path / name))
        train(script, *paths, *output, *more)
        return tmp_path / name

    return run_script


@pytest.fixture
def autoencoder(tmp_path):
    """A tiny autoencoder and its folder."""
    torch.manual_seed(5)
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path / "vae")
    return model, tmp_path / "vae"


def test_it_learns_classes_that_can_be_told_apart(run):
    """Real images; by chance one in ten is right."""
    options = ("--num_images", "2400", "--checkpoint_every_images", "0", "--validate_every_images", "0")
    folder = run("run", *options, "--validation.split", "train", "--num_labels", "40", "--batch_size", "20")
    [report] = json.loads((folder / "final" / "metrics.json").read_text())
    assert report["accuracy"]["count"] == 64 and report["accuracy"]["value"] > 0.7
    losses = [record["classifier"] for record in records(folder)]
    assert losses[-1] < 0.4 and losses[0] > 1
    classifier = ImageClassifier.from_pretrained(folder / "final")
    assert classifier.class_names[9] == "ankle boot" and classifier.config.pool_size == 2
    images = torch.randn(2, 1, 14, 14)
    named = classifier.log_prob(images, None, ["bag", "ankle boot"])
    torch.testing.assert_close(named, classifier(images).log_softmax(1)[[0, 1], [8, 9]])


@pytest.mark.parametrize(
    ("tree", "more"),
    [
        pytest.param(None, ("--random_crop", "2", "--label_smoothing", "0.1"), marks=pytest.mark.slow),
        (None, ("--linear_probe", "--num_labels", "20")),
        (NOISE_AWARE_TREE, ("--random_crop", "1", "--classifier.dropout", "0.2")),
    ],
    ids=["clean", "probe", "noise-aware"],
)
def test_the_same_command_goes_on_to_the_same_bits(run, tree, more):
    more = (*more, "--validate_every_images", "0", "--final_images", "4")
    assert_goes_on_to_the_same_bits(partial(run, tree=tree), 24, *more)


def test_a_classifier_starts_as_the_autoencoders_encoder_and_a_probe_leaves_it_so(run, autoencoder):
    model, path = autoencoder
    options = ("--init_from_autoencoder", str(path), "--crop", "null", "--resolution", "16")
    folder = run("run", *options, "--linear_probe", tree={**TINY, "classifier": {"pool_size": 2}})
    found = load_file(folder / "final" / "diffusion_pytorch_model.safetensors")
    expected = {f"encoder.{n}": w for n, w in model.encoder.state_dict().items() if "conv_out" not in n}
    assert {name for name in found if name.startswith("encoder.")} == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    probe, start = ImageClassifier.from_pretrained(folder / "final"), torch.zeros(10)
    assert not torch.allclose(probe.head.bias, start, atol=1e-3)  # the head has learned
    images = torch.randn(2, 1, 16, 16)
    features = model.encoder.conv_act(model.encoder.conv_norm_out(middle_of(model.encoder, images)))
    pooled = torch.nn.functional.adaptive_avg_pool2d(features, 2).flatten(1)
    torch.testing.assert_close(probe.features(images), pooled)
    tuned = run("tuned", *options, tree={**TINY, "classifier": {"pool_size": 2}})
    moved = load_file(tuned / "final" / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(moved["encoder.conv_in.weight"], expected["encoder.conv_in.weight"])


def middle_of(encoder, images):
    hidden = encoder.conv_in(images)
    for block in encoder.down_blocks:
        hidden = block(hidden)
    return encoder.mid_block(hidden)


def test_without_its_weights_the_network_is_the_same_and_starts_elsewhere(autoencoder):
    model, _ = autoencoder
    taken = ImageClassifier.from_autoencoder(model, num_classes=3)
    fresh = ImageClassifier.from_autoencoder(model, copy_weights=False, num_classes=3)
    assert {n: w.shape for n, w in taken.state_dict().items()} == {
        n: w.shape for n, w in fresh.state_dict().items()
    }
    assert not torch.equal(taken.encoder.conv_in.weight, fresh.encoder.conv_in.weight)
    del model.encoder.down_blocks[1]
    with pytest.raises(RuntimeError, match="Missing key"):
        ImageClassifier.from_autoencoder(model, num_classes=3)


def test_noise_aware_in_latents_says_what_it_was_trained_on(run, tiny_folder):
    options = ("--autoencoder", str(tiny_folder / "vae"), "--crop", "null", "--resolution", "16")
    folder = run("run", *options, tree=NOISE_AWARE_TREE)
    classifier = NoiseAwareClassifier.from_pretrained(folder / "final")
    scheduler = GuidedDDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    assert classifier.config.process == describe_process(scheduler)
    classifier.check_scheduler(scheduler)
    with pytest.raises(ValueError, match="num_train_timesteps 20 for 1000"):
        classifier.check_scheduler(GuidedDDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert classifier.config.in_channels == 2 and classifier.config.sample_size == 8
    assert classifier.class_names[0] == "t-shirt"
    validation = records(folder)[-1]["validation"]
    assert len(validation["gradient_norm_by_noise"]) == len(validation["accuracy_by_noise"]) == 3
    assert validation["gradient_norm"] > 0 and 0 <= validation["calibration_error"] <= 1
    assert Image.open(folder / "validation" / "000000000048.png").size[0] > 500
    reports = json.loads((folder / "final" / "metrics.json").read_text())
    ratios = [report["noise_to_signal"] for report in reports]
    assert ratios == sorted(ratios) and len(ratios) == 3
    assert reports[0]["gradient_norm"]["count"] == 20


def test_any_distribution_of_levels_and_any_process(run):
    flow = {**NOISE_AWARE_TREE, "scheduler": "FlowMatchEulerDiscreteScheduler", "scheduler_arguments": {}}
    options = ("--num_images", "16", "--final_images", "2", "--validate_every_images", "0")
    cosine = run("cosine", *options, "--levels", "cosine", tree=flow)
    process = NoiseAwareClassifier.from_pretrained(cosine / "final").config.process
    assert process == {"kind": "flow", "num_train_timesteps": 1000}
    more = ("--levels", "log_normal", "--objective.levels_arguments.mean", "0.5")
    low, high = (
        json.loads((run(name, *options, *extra, tree=NOISE_AWARE_TREE) / "final/metrics.json").read_text())
        for name, extra in (("low", more), ("high", (*more[:3], "2.5")))
    )
    assert low[1]["noise_to_signal"] < 2 * 2.718**0.5 < high[1]["noise_to_signal"]


def test_a_noise_aware_classifier_starts_as_an_encoder_whatever_the_timestep(run, autoencoder, caplog):
    model, path = autoencoder
    arguments = {
        **NOISE_AWARE,
        "block_out_channels": [4, 8],
        "downsample_type": "conv",
        "layers_per_block": 1,
        "norm_eps": 1e-6,
    }
    classifier = NoiseAwareClassifier(sample_size=16, in_channels=1, **arguments).eval()
    model.encoder.mid_block.attentions[0] = None  # the classifier's attention is the start's to switch off
    copied = start_from_encoder(classifier, model.encoder)
    assert 0 < copied.tensors < copied.of_tensors and copied.numbers > 0.5 * copied.of_numbers
    hidden, embedding = (
        torch.randn(2, 4, 16, 16),
        torch.randn(2, classifier.time_embedding.linear_2.out_features),
    )
    ours, theirs = classifier.down_blocks[0].resnets[0], model.encoder.down_blocks[0].resnets[0]
    torch.testing.assert_close(ours(hidden, embedding), theirs(hidden, None))
    middle = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(
        classifier.mid_block(middle, embedding), model.encoder.mid_block(middle), rtol=1e-4, atol=1e-5
    )
    ours(hidden, embedding).sum().backward()
    assert ours.time_emb_proj.weight.grad.abs().max() > 0  # it can learn the timestep
    caplog.set_level(logging.INFO)
    options = ("--init_from_autoencoder", str(path), "--crop", "null", "--resolution", "16")
    run("run", *options, "--num_images", "8", tree={**NOISE_AWARE_TREE, "classifier": arguments})
    assert "of the encoder's" in caplog.text


def test_an_encoder_that_does_not_fit_is_refused(autoencoder):
    model, _ = autoencoder
    for changed, words in (
        ({"block_out_channels": [16, 32]}, "none of the encoder's convolutions fits"),
        (
            {"block_out_channels": [4, 8], "norm_num_groups": 2},
            "norm_num_groups is 2, and the encoder's is 4",
        ),
    ):
        classifier = NoiseAwareClassifier(sample_size=16, in_channels=3, **{**NOISE_AWARE, **changed})
        before = {name: value.clone() for name, value in classifier.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            start_from_encoder(classifier, model.encoder)
        assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_subsets_have_every_class_in_its_share_and_lie_in_one_another():
    labels = torch.arange(600) % 10
    small, large = (stratified_subset(labels, count, seed=3) for count in (50, 200))
    assert labels[small].bincount().tolist() == [5] * 10 and labels[large].bincount().tolist() == [20] * 10
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, stratified_subset(labels, 50, seed=3))
    assert not torch.equal(small, stratified_subset(labels, 50, seed=4))
    uneven = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    assert uneven[stratified_subset(uneven, 13, seed=0)].bincount().tolist() == [9, 3, 1]
    mirrored = stratified_subset(labels.repeat(2), 50, seed=3, sources=600)
    assert torch.equal(mirrored, torch.cat([small, small + 600]))
    with pytest.raises(ValueError, match="num_labels is 601; allowed: .* 600"):
        stratified_subset(labels, 601, seed=0)


def test_a_crop_is_a_window_of_the_padded_image(script, tmp_path):
    tree = {**TINY, "classifier": CLEAN, "objective": {"random_crop": 2}}
    tree["training"] = {**TINY["training"], "output_dir": str(tmp_path)}
    tree["data"] = {**TINY["data"], "cache_dir": str(tmp_path)}
    task = script.make_task(build_config(script.ClassifierConfig, tree), "cpu")
    indices = list(range(40))
    cropped = task.batch(indices, indices)["images"]
    originals = task.data.images.sample(indices, None)
    padded = torch.nn.functional.pad(originals, (2, 2, 2, 2), mode="replicate")
    windows = padded.unfold(2, 14, 1).unfold(3, 14, 1)[:, 0].flatten(1, 2)  # (images, 25, 14, 14)
    places = (windows == cropped).flatten(2).all(2)
    assert places.any(1).all() and places.float().argmax(1).unique().numel() > 10
    part = task.batch([5, 2], [5, 2])["images"]
    assert torch.equal(part, cropped[[5, 2]])


def test_names_may_be_the_labels(run):
    folder = run("run", "--label_column", "name", "--num_images", "8", "--final_images", "2")
    names = ImageClassifier.from_pretrained(folder / "final").class_names
    assert list(names.values()) == sorted(names.values()) and "ankle boot" in names.values()


@pytest.mark.parametrize(
    ("tree", "more", "words"),
    [
        (NOISE_AWARE_TREE, ("--linear_probe",), "linear_probe is of a classifier of clean images"),
        (
            None,
            ("--classifier.num_classes", "4", "--classifier.id2label", "null"),
            "labels up to 9, and classifier.num_classes is 4",
        ),
        (None, ("--label_column", "kind"), "column of .* is 'kind'; allowed"),
        (None, ("--label_column", "text"), "row 0 has .* in label_column 'text' of .*; allowed: a class"),
    ],
)
def test_options_that_do_not_go_together_are_named(run, tree, more, words):
    with pytest.raises(ValueError, match=words):
        run("run", *more, tree=tree)


def test_crops_are_of_pixels(run, tiny_folder):
    options = ("--autoencoder", str(tiny_folder / "vae"), "--crop", "null", "--resolution", "16")
    with pytest.raises(ValueError, match="random_crop is of pixels"):
        run("run", *options, "--random_crop", "1", tree=NOISE_AWARE_TREE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"random_crop": -1}, "random_crop is -1"),
        ({"linear_probe": True, "random_crop": 1}, "random_crop must be 0"),
    ],
)
def test_ranges_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        ObjectiveConfig(**arguments)


@pytest.mark.parametrize("name", ["fashion_classifier", "fashion_noise_aware_classifier"])
def test_the_recipes_resolve(script, name):
    recipe = TRAINING / "configs" / f"{name}.yaml"
    config = read(script, "--config", recipe)
    assert len(SCRIPT.read_text().splitlines()) < 150
    if config.noise_aware:
        sizes = {"num_classes": 10, "id2label": None}
        classifier = script.make_classifier(config, (4, 8, 8), sizes)
        classifier.check_scheduler(
            GuidedDDPMScheduler.from_pretrained(pretrained("fashion-32") / "scheduler")
        )
        assert classifier(torch.randn(2, 4, 8, 8), torch.tensor([0, 999])).shape == (2, 10)
        assert 2 * sum(parameter.numel() for parameter in classifier.parameters()) < 2e6  # bytes in float16
