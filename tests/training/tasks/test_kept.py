"""A run that goes on keeps the tokenizer and the class numbers that it was begun with."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Value
from tiny_data import captioned, classed
from tiny_text_encoders import saved
from training_scripts import ENCODER, TEXT_MODEL, TRAINING, load, same, train, weights
from transformers import AutoTokenizer

from guided_diffusers.store.caption_words import known_words
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.engine.checkpoint import latest_checkpoint
from guided_diffusers.training.tasks.kept import run_labels

UNET = {**ENCODER, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
SHORT = {"num_images": 32, "batch_size": 8, "validate_every_images": 0, "snapshot_fractions": []}
TREES: dict[str, dict[str, Any]] = {
    "train_text_to_image": {
        **yaml.safe_load((TRAINING / "configs" / "tiny_text_to_image.yaml").read_text()),
        "drawing": {"prompts": []},
    },
    "train_clip": {
        "noise_aware": True,
        "projection_dim": 8,
        "text": {"vocabulary_size": 600, "context_length": 8, "model": TEXT_MODEL},
        "image": {**ENCODER, "attention_head_dim": 4},
        "validation": {"split": "train", "final_images": 8, "noise_bins": 2},
    },
    "train_classifier": {
        "classifier": {**ENCODER, "pool_size": 2},
        "validation": {"split": "train", "final_images": 8},
        "data": {"caption_column": None},
    },
    "train_unconditional": {
        "label_column": "label",
        "unet": UNET,
        "scheduler": {"num_train_timesteps": 4},
        "validation": {"images": 0},
        "data": {"caption_column": None},
    },
}
TEXTS = ("train_text_to_image", "train_clip")
CLASSES = ("train_classifier", "train_unconditional")


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Any:
    """Runs a script on a folder of data; gives the run's folder."""

    def run_script(script: str, data: Path, name: str = "run", **more: Any) -> Path:
        tree = json.loads(json.dumps(TREES[script]))
        tree["training"] = {**SHORT, "output_dir": str(tmp_path / name), "seed": 3}
        paths = {"path": str(data), "cache_dir": str(tmp_path / "cache"), "resolution": 16, "channels": 1}
        tree["data"] = {**tree.get("data", {}), **paths}
        if script == "train_text_to_image":
            tree["autoencoder"] = str(tiny_folder / "vae")
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        options = [
            word for key, value in more.items() for word in (f"--{key.replace('__', '.')}", str(value))
        ]
        train(load(script), "--config", tmp_path / "tiny.yaml", *options)
        return tmp_path / name

    return run_script


def exported_tokenizer(folder: Path) -> Any:
    place = folder / "final" / "tokenizer"
    return AutoTokenizer.from_pretrained(place if place.is_dir() else folder / "final")


@pytest.mark.parametrize("script", TEXTS)
def test_new_captions_are_told_and_renumber_nothing(
    run: Any, tmp_path: Path, script: str, caplog: pytest.LogCaptureFixture
):
    """With a full vocabulary a tokenizer learned anew has the same size, and other ids."""
    captions = [f"a {word} thing" for word in ("red", "blue", "dark", "light")]
    data = captioned(tmp_path / "data", captions)
    folder = run(script, data, text__vocabulary_size=530, stop_at_images=16)
    before = AutoTokenizer.from_pretrained(folder / "tokenizer")
    captioned(data, captions + ["zebra crossing", "zebra herd", "zebra foal", "zebra zoo"])
    with caplog.at_level(logging.WARNING):
        run(script, data, text__vocabulary_size=530)
    (told,) = [record.getMessage() for record in caplog.records if "new to this run" in record.getMessage()]
    assert told == (
        "captions have 5 words that are new to this run, whose tokenizer stays as it was: "
        "'zebra', 'crossing', 'foal' ..."
    )
    after = exported_tokenizer(folder)
    assert after.get_vocab() == before.get_vocab()
    assert known_words(before) == {"a", "thing", "red", "blue", "dark", "light"}
    assert known_words(after) == known_words(before) | {"zebra", "crossing", "herd", "foal", "zoo"}
    caplog.clear()
    run(script, data, text__vocabulary_size=530, num_images=40)
    assert "new to this run" not in caplog.text


def test_a_run_without_a_checkpoint_begins_with_the_captions_that_there_are(run: Any, tmp_path: Path):
    data = captioned(tmp_path / "data", ["a red thing", "a blue thing"])
    folder = run("train_text_to_image", data, stop_at_images=8)
    shutil.rmtree(folder / "checkpoints")
    captioned(data, ["a zebra", "a horse"])
    run("train_text_to_image", data)
    assert known_words(exported_tokenizer(folder)) == {"a", "zebra", "horse"}


@pytest.mark.parametrize(
    "exported", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["exported", "not exported"]
)
def test_a_run_of_an_older_version_goes_on(
    run: Any, tmp_path: Path, exported: bool, caplog: pytest.LogCaptureFixture
):
    """Such a run has no tokenizer in its folder: the one that it exported counts, or the risk is told."""
    data = captioned(tmp_path / "data", ["a red thing", "a blue thing"])
    whole = run("train_text_to_image", data, "whole")
    folder = run("train_text_to_image", data, stop_at_images=16)
    shutil.rmtree(folder / "tokenizer")
    if exported:
        shutil.copytree(whole / "final", folder / "final")
    with caplog.at_level(logging.WARNING):
        run("train_text_to_image", data)
    assert ("begun by a version that kept no tokenizer" in caplog.text) == (not exported)
    assert same(*(weights(latest_checkpoint(path / "checkpoints")) for path in (folder, whole)))


def test_another_pretrained_tokenizer_is_refused(run: Any, tmp_path: Path):
    data = captioned(tmp_path / "data", ["a red thing", "a blue thing"])
    one, two = (saved(name, tmp_path / name) for name in ("T5EncoderModel", "BertModel"))
    given = {"text__encoder": "frozen", "text__subfolders": "false"}
    run("train_text_to_image", data, text__pretrained=one, stop_at_images=16, **given)
    with pytest.raises(ValueError, match="whose tokenizer is not the one that the run in .* was begun with"):
        run("train_text_to_image", data, text__pretrained=two, **given)


@pytest.mark.parametrize("script", TEXTS)
def test_captions_cut_short_are_told_in_one_line(
    run: Any, tmp_path: Path, script: str, caplog: pytest.LogCaptureFixture
):
    long = "one two three four five six"
    data = captioned(tmp_path / "data", [f"{long} seven red", f"{long} seven blue", "a red one"])
    with caplog.at_level(logging.WARNING):
        run(script, data, stop_at_images=8)
    (told,) = [record.getMessage() for record in caplog.records if "does not see" in record.getMessage()]
    assert f"reads 8 tokens; of '{long} seven blue' it does not see: 'seven blue' (2 of " in told


@pytest.mark.parametrize("script", CLASSES)
@pytest.mark.parametrize("kind", ["names", "ClassLabel"])
def test_classes_keep_their_numbers(run: Any, tmp_path: Path, script: str, kind: str):
    """A class is gone, and another's name comes first: the rest are what they were."""
    named = kind == "ClassLabel"
    first, then = ["bag", "coat", "dress"], ["coat", "dress", "zebra"]
    kinds = [ClassLabel(names=names) if named else Value("string") for names in (first, then)]
    data = classed(tmp_path / "data", [0, 1, 2] * 4 if named else first * 4, kinds[0])
    folder = run(script, data, stop_at_images=16)
    classed(data, [0, 1] * 6 if named else then[:2] * 6, kinds[1])
    config = DataConfig(path=str(data), caption_column=None, cache_dir=str(tmp_path / "cache"))
    labels, classes = run_labels(ImageTextDataset(config), "label", folder)
    assert labels.tolist() == [1, 2] * 6 and classes.names == first
    run(script, data)
    assert json.loads((folder / "classes.json").read_text()) == {"count": 3, "names": first}


@pytest.mark.parametrize("script", CLASSES)
@pytest.mark.parametrize("named", [True, False], ids=["names", "numbers"])
def test_a_class_that_the_run_does_not_know_is_refused(run: Any, tmp_path: Path, script: str, named: bool):
    kind = Value("string" if named else "int64")
    data = classed(tmp_path / "data", (["coat", "dress"] if named else [0, 1]) * 4, kind)
    run(script, data, stop_at_images=16)
    classed(data, (["coat", "dress", "bag"] if named else [0, 1, 2]) * 4, kind)
    words = "row 2 has 'bag' .*allowed: one of" if named else "labels up to 2"
    with pytest.raises(ValueError, match=words):
        run(script, data)
