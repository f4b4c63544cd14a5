"""Hostile and broken checkpoints: each is refused with one line, before anything of it runs or is used."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guided_diffusers import TextToImagePipeline, VariationalAutoencoder
from guided_diffusers.store.safety import check_finite, check_path, safetensors_header

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def only_a_pickle(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    file.write_bytes(pickle.dumps(Bomb(folder / "exploded")))


def outside(folder: Path) -> None:
    shutil.move(folder / "unet" / WEIGHTS, folder.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../stolen.safetensors"}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def missing_shard(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def component(name: str, *value: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", lambda index: {**index, name: list(value)})


def own_code(folder: Path) -> None:
    (folder / "unet" / "evil.py").write_text(f"open({str(folder / 'exploded')!r}, 'w')")
    component("unet", "evil", "UNet2DConditionModel")(folder)


def wrong_shape(part: str, file: str, key: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = torch.zeros(*tensors[key].shape, 2)

    return lambda folder: weights(folder / part / file, change)


def not_finite(part: str, file: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).flatten()[0] = value

    return lambda folder: weights(folder / part / file, change)


def without(part: str, file: str, key: str) -> Callable[[Path], None]:
    return lambda folder: weights(folder / part / file, lambda tensors: tensors.pop(key))


def cut_short(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def not_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


TEXT = ("text_encoder", "model.safetensors")
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (only_a_pickle, "pickles are refused"),
    "shard outside": (outside, "leaves the checkpoint's folder"),
    "missing shard": (missing_shard, "is not there"),
    "component is a path": (component("../unet", "diffusers", "UNet2DConditionModel"), "no name but a path"),
    "library of the system": (component("unet", "os", "system"), "is os.system; allowed"),
    "library is a path": (component("unet", "../evil", "UNet2DConditionModel"), "../evil"),
    "function of transformers": (component("unet", "transformers", "pipeline"), "is transformers.pipeline"),
    "class that is no component": (component("unet", "diffusers", "ConfigMixin"), "diffusers.ConfigMixin"),
    "class that is not there": (component("unet", "diffusers", "Nothing"), "is diffusers.Nothing"),
    "code of its own": (own_code, "is evil.UNet2DConditionModel"),
    "wrong shape": (wrong_shape("unet", WEIGHTS, "conv_in.bias"), "do not fit"),
    "wrong shape in the autoencoder": (wrong_shape("vae", WEIGHTS, "quant_conv.bias"), "do not fit"),
    "wrong shape in the text encoder": (wrong_shape(*TEXT, "final_layer_norm.bias"), "do not fit"),
    "NaN": (not_finite("unet", WEIGHTS, float("nan")), "NaN or infinite"),
    "infinity in the text encoder": (not_finite(*TEXT, float("inf")), "NaN or infinite"),
    "missing weight": (without("unet", WEIGHTS, "conv_in.bias"), "not whole"),
    "missing weight of the autoencoder": (without("vae", WEIGHTS, "quant_conv.bias"), "not whole"),
    "missing weight of the text encoder": (without(*TEXT, "final_layer_norm.bias"), "not whole"),
    "cut short": (cut_short, "unet"),
    "no JSON": (not_json, "model_index.json"),
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
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("case", ["shard outside", "wrong shape", "NaN", "missing weight"])
def test_a_single_model_is_checked_as_well(tiny_folder: Path, tmp_path: Path, case: str):
    folder = tmp_path / "vae"
    shutil.copytree(tiny_folder / "vae", folder)
    if case == "shard outside":
        shutil.move(folder / WEIGHTS, tmp_path / "stolen.safetensors")
        index = {"metadata": {}, "weight_map": {"conv_in.weight": "../stolen.safetensors"}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    elif case == "wrong shape":
        wrong_shape("vae", WEIGHTS, "quant_conv.bias")(tmp_path)
    elif case == "NaN":
        not_finite("vae", WEIGHTS, float("nan"))(tmp_path)
    else:
        without("vae", WEIGHTS, "quant_conv.bias")(tmp_path)
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
    only_a_pickle(folder)
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
