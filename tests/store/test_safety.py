"""Hostile and broken checkpoints: each is refused with one line, before anything of it runs or is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    EXPLODED,
    Spoil,
    component,
    cut,
    fill,
    index,
    pickle_in_place_of_weights,
    reshape,
    shards,
    weights,
)
from safetensors.torch import save_file

from guided_diffusers import TextToImagePipeline, VariationalAutoencoder
from guided_diffusers.store.safety import check_finite, check_path, safetensors_header

OUTSIDE = shards({"metadata": {}, "weight_map": {"conv_in.weight": "CLIMBING"}}, keep=True)
MISSING = shards({"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}})


def of(part: str, spoil: Spoil) -> Spoil:
    """A component is spoiled."""
    return lambda folder: spoil(folder / part)


def without(key: str) -> Spoil:
    return weights(lambda tensors, _: tensors.pop(key))


def wrong_shape(key: str) -> Spoil:
    return weights(lambda tensors, _: reshape(tensors, key))


def own_code(folder: Path) -> None:
    (folder / "unet" / "evil.py").write_text(f"open({str(folder / EXPLODED)!r}, 'w')")
    component("evil", "UNet2DConditionModel")(folder)


CASES: dict[str, tuple[Spoil, str]] = {
    "pickle": (pickle_in_place_of_weights, "pickles are refused"),
    "shard outside": (OUTSIDE, "leaves the checkpoint's folder"),
    "missing shard": (MISSING, "is not there"),
    "component is a path": (
        index(**{"../unet": ["diffusers", "UNet2DConditionModel"]}),
        "no name but a path",
    ),
    "library of the system": (component("os", "system"), "is os.system; allowed"),
    "library is a path": (component("../evil", "UNet2DConditionModel"), "../evil"),
    "function of transformers": (component("transformers", "pipeline"), "is transformers.pipeline"),
    "class that is no component": (component("diffusers", "ConfigMixin"), "diffusers.ConfigMixin"),
    "class that is not there": (component("diffusers", "Nothing"), "is diffusers.Nothing"),
    "code of its own": (own_code, "is evil.UNet2DConditionModel"),
    "wrong shape": (wrong_shape("conv_in.bias"), "do not fit"),
    "wrong shape in the autoencoder": (of("vae", wrong_shape("quant_conv.bias")), "do not fit"),
    "wrong shape in the text encoder": (
        of("text_encoder", wrong_shape("final_layer_norm.bias")),
        "do not fit",
    ),
    "NaN": (fill(float("nan")), "NaN or infinite"),
    "infinity in the text encoder": (of("text_encoder", fill(float("inf"))), "NaN or infinite"),
    "missing weight": (without("conv_in.bias"), "not whole"),
    "missing weight of the autoencoder": (of("vae", without("quant_conv.bias")), "not whole"),
    "missing weight of the text encoder": (of("text_encoder", without("final_layer_norm.bias")), "not whole"),
    "cut short": (cut(-100), "unet"),
    "no JSON": (lambda folder: (folder / "model_index.json").write_text("{") and None, "model_index.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_checkpoint_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path, case: str):
    spoil, words = CASES[case]
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    with pytest.raises(OSError) as refused:
        TextToImagePipeline.from_pretrained(folder)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
    assert not (folder / EXPLODED).exists()


@pytest.mark.parametrize(
    "spoil",
    [OUTSIDE, wrong_shape("quant_conv.bias"), fill(float("nan")), without("quant_conv.bias")],
    ids=["shard outside", "wrong shape", "NaN", "missing weight"],
)
def test_a_single_model_is_checked_as_well(tiny_folder: Path, tmp_path: Path, spoil: Spoil):
    folder = tmp_path / "vae"
    shutil.copytree(tiny_folder / "vae", folder)
    spoil(folder)
    with pytest.raises(OSError) as refused:
        VariationalAutoencoder.from_pretrained(folder)
    assert "\n" not in str(refused.value)


def test_what_is_right_passes(tiny_folder: Path):
    TextToImagePipeline.from_pretrained(tiny_folder)
    VariationalAutoencoder.from_pretrained(tiny_folder, subfolder="vae")


def test_a_caller_may_bring_a_component_in_the_place_of_a_bad_one(
    tiny_folder: Path, tmp_path: Path, tiny_pipeline
):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    pickle_in_place_of_weights(folder)
    loaded = TextToImagePipeline.from_pretrained(folder, unet=tiny_pipeline.unet)
    assert loaded.unet is tiny_pipeline.unet


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "a\\..\\b", "a\0b", 3])
def test_paths_that_leave_a_folder(path: Any):
    with pytest.raises(OSError, match="leaves the checkpoint's folder"):
        check_path(path, "index")


def test_paths_inside_pass():
    for path in ("a", "a/b.json", "..a/b..", "ünï/cödé"):
        check_path(path, "index")


def test_a_header_says_how_long_the_file_should_be(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    assert safetensors_header(path)["a"]["shape"] == [3]
    for content in (b"", b"abc", (2**62).to_bytes(8, "little") + b"{}", path.read_bytes() + b"more"):
        path.write_bytes(content)
        with pytest.raises(OSError, match="cut short|header"):
            safetensors_header(path)


def test_finite_weights_of_any_dtype_pass():
    check_finite(torch.nn.Linear(2, 2).to(torch.bfloat16), "linear")
    check_finite("no network", "text")
