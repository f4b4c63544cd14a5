"""The parts of the Hub that need none: the card, what a push replaces, what errors say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from guided_diffusers.hub import CardFacts, HubError
from guided_diffusers.hub.card import card_files
from guided_diffusers.hub.entry_point import entry_point
from guided_diffusers.hub.errors import explanation, hub_errors
from guided_diffusers.hub.push import replaced
from guided_diffusers.store.weight_files import weights_kind

ROOT = Path(__file__).parents[2]
EVALUATION = {
    "images": 1000,
    "real_images": 10_000,
    "figures": {
        "KD-efficientnet-lite0": {"value": 0.0123, "low": 0.01, "high": 0.015, "count": 1000},
        "precision": {"value": 0.75, "low": 0.7, "high": 0.8, "count": 1000},
    },
    "compute": None,
}
FACTS = {
    "name": "Tiny clothes",
    "description": "Draws clothes.",
    "license": "apache-2.0",
    "datasets": ["zalando-datasets/fashion_mnist"],
    "training_data": "The training images of Fashion-MNIST.",
    "training_data_license": "MIT",
    "recipe": ["Run: as it was"],
    "images_seen": 12_345,
    "evaluation_data": {"type": "zalando-datasets/fashion_mnist", "name": "Fashion-MNIST", "split": "test"},
    "picture": "grid.png",
    "picture_caption": "One row a prompt",
    "prompt": "a photo of a bag",
    "intended_use": "For tests.",
    "limits": "It knows ten words.",
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint with all that a card wants beside it."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, copy)
    (copy / "card.json").write_text(json.dumps(FACTS))
    (copy / "evaluation.json").write_text(json.dumps(EVALUATION))
    (copy / "grid.png").write_bytes(b"a picture")
    return copy


def card_of(files: dict[str, Path | bytes]) -> ModelCard:
    text = files["README.md"]
    return ModelCard((text if isinstance(text, bytes) else text.read_bytes()).decode())


def test_a_card_is_filled_from_the_facts_and_the_evaluation(folder: Path):
    files = card_files(folder, "alice/tiny", with_code=True)
    card = card_of(files)
    assert files["grid.png"] == folder / "grid.png"
    for words in (
        "# Tiny clothes\n\nDraws clothes.",
        "![One row a prompt](grid.png)",
        'TextToImagePipeline.from_pretrained("alice/tiny")',
        'pipeline("a photo of a bag").images[0]',
        "trust_remote_code=True",
        'UNet2DConditionModel.from_pretrained("alice/tiny", subfolder="unet")',
        "Licence of the training data: MIT.",
        "Images seen: 12,345.",
        "- Run: as it was",
        "Measured against Fashion-MNIST on 1,000 images and 10,000 real images.",
        "| KD-efficientnet-lite0 | 0.0123 | 0.01 to 0.015 |",
        "## Intended use\n\nFor tests.",
        "## Limits\n\nIt knows ten words.",
    ):
        assert words in card.text, words
    assert card.data.license == "apache-2.0" and card.data.datasets == FACTS["datasets"]


def test_figures_are_results_of_the_model_index(folder: Path):
    results = card_of(card_files(folder, "alice/tiny")).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("KD-efficientnet-lite0", 0.0123),
        ("precision", 0.75),
    ]
    assert {(r.task_type, r.dataset_name, r.dataset_split) for r in results} == {
        ("text-to-image", "Fashion-MNIST", "test")
    }


def test_figures_against_nobody_knows_what_stay_out_of_the_model_index(folder: Path):
    known = {key: value for key, value in FACTS.items() if key != "evaluation_data"}
    (folder / "card.json").write_text(json.dumps(known))
    card = card_of(card_files(folder, "alice/tiny"))
    assert card.data.eval_results is None and "| precision | 0.75 |" in card.text


def test_what_is_not_known_is_left_out(tiny_folder: Path):
    card = card_of(card_files(tiny_folder, "alice/tiny"))
    for title in ("Training", "Evaluation", "Intended use", "Limits"):
        assert f"## {title}" not in card.text
    data = yaml.safe_load(card.content.split("---")[1])
    assert set(data) == {"library_name", "pipeline_tag", "tags"}


def test_facts_may_be_given_and_a_whole_card_is_taken_as_it_is(folder: Path, tmp_path: Path):
    assert "# Other" in card_of(card_files(folder, "a/b", CardFacts(name="Other"))).text
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert card_files(folder, "a/b", tmp_path / "card.md")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"licence": "mit"}, "unknown key 'licence'.*'license'"), ([], "allowed: a mapping")],
)
def test_facts_that_are_none_are_named(folder: Path, facts, words):
    (folder / "card.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=words):
        card_files(folder, "alice/tiny")


@pytest.mark.parametrize(("picture", "words"), [("../a.png", "leaves"), ("nowhere.png", "no such file")])
def test_a_picture_lies_beside_the_facts(folder: Path, picture, words):
    (folder / "card.json").write_text(json.dumps({"picture": picture}))
    with pytest.raises(OSError, match=words):
        card_files(folder, "alice/tiny")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ("diffusion_pytorch_model", "")),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", ("diffusion_pytorch_model", "")),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", ("diffusion_pytorch_model", "fp16")),
        ("model.fp16.safetensors", ("model", "fp16")),
        ("model.safetensors.index.json", ("model", "")),
        ("model.safetensors.index.fp16.json", ("model", "fp16")),
        ("config.json", None),
        ("model.bin", None),
    ],
)
def test_files_of_weights_are_known_by_base_and_variant(name: str, kind):
    assert weights_kind(name) == kind


def test_a_push_removes_the_shards_that_it_replaces_and_nothing_else():
    there = [
        "unet/model-00001-of-00002.safetensors",
        "unet/model-00002-of-00002.safetensors",
        "unet/model.safetensors.index.json",
        "unet/model.fp16.safetensors",
        "unet/config.json",
        "vae/model.safetensors",
        "notes.txt",
        "README.md",
    ]
    assert replaced(there, ["unet/model.safetensors", "unet/config.json"]) == there[:3]
    assert replaced(there, ["unet/model.fp16-00001-of-00002.safetensors"]) == ["unet/model.fp16.safetensors"]
    assert replaced(there, there) == []


def test_a_push_without_code_removes_the_shims_of_one_with():
    index = {"_class_name": "ImagePipeline", "scheduler": ["guided_diffusers", "GuidedDDPMScheduler"]}
    with_code = entry_point(index)
    assert set(with_code) == {"model_index.json", "pipeline.py", "scheduler/guided_diffusers.py"}
    plain = ["model_index.json", "scheduler/scheduler_config.json"]
    assert replaced(with_code, plain) == ["pipeline.py", "scheduler/guided_diffusers.py"]
    assert replaced(with_code, ["notes.txt"]) == []


def test_only_a_pipeline_of_ours_needs_code():
    with pytest.raises(ValueError, match="StableDiffusionPipeline: it needs no code"):
        entry_point({"_class_name": "StableDiffusionPipeline"})


def test_errors_are_found_in_the_chain_of_causes():
    def fail() -> None:
        try:
            raise OfflineModeIsEnabled("long\nstory")
        except OfflineModeIsEnabled as error:
            raise OSError("the model is not fully cached locally") from error

    with pytest.raises(HubError, match="^a/b cannot be reached: the client is offline") as raised:
        with hub_errors("a/b"):
            fail()
    assert isinstance(raised.value.__cause__, OSError)
    assert "hf auth login" in explanation(LocalTokenNotFoundError("x"), "a/b")
    assert explanation(ValueError("x"), "a/b") is None
    with pytest.raises(HubError, match="^a/b: first$"), hub_errors("a/b"):  # raised by the client's code
        exec("raise RuntimeError('first\\nsecond')", {"__name__": "huggingface_hub._commit_api"})
    with pytest.raises(KeyError), hub_errors("a/b"):
        raise KeyError("not the Hub's")
