"""`guided-diffusers info`, and what push and pull refuse before they reach the Hub, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import Run
from tiny import tiny_components


def test_info_counts_what_the_networks_have(run: Run, tiny_folder: Path):
    code, output, _ = run("info", tiny_folder, "--json")
    content, parts = json.loads(output), tiny_components()
    assert code == 0 and content["class"] == "TextToImagePipeline"
    found = {component["name"]: component for component in content["components"]}
    for name in ("vae", "unet", "text_encoder"):
        count = sum(parameter.numel() for parameter in parts[name].parameters())
        size = sum(path.stat().st_size for path in (tiny_folder / name).glob("*.safetensors"))
        assert (found[name]["parameters"], found[name]["bytes"]) == (count, size)
        assert found[name]["dtypes"] == ["float32"]
    assert content["parameters"] == sum(component["parameters"] for component in content["components"])
    assert content["image_size"] == 16
    assert content["schedule"]["class"] == "GuidedDDIMScheduler"
    assert content["default_guidance"][0]["scale"] == 2.0


def test_info_in_words(run: Run, tiny_folder: Path):
    code, output, _ = run("info", tiny_folder)
    assert code == 0
    assert output.splitlines()[0].startswith("TextToImagePipeline: ")
    for words in ("unet", "UNet2DConditionModel", "images: 16x16", "beta_schedule scaled_linear", "scale 2"):
        assert words in output


def test_info_of_a_shipped_checkpoint_with_a_network_beside_the_pipeline(run: Run):
    code, output, _ = run("info", "fashion-32")
    assert code == 0
    assert "weak_unet" in output and "float16" in output
    assert "default guidance: AutoGuidance, scale 2.0, null=True" in output


def test_info_counts_shards_once_and_variants_apart(run: Run, tmp_path: Path):
    vae = tiny_components()["vae"]
    vae.save_pretrained(tmp_path, max_shard_size="8KB")
    vae.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    content = json.loads(run("info", tmp_path, "--json")[1])
    (component,) = content["components"]
    assert component["parameters"] == sum(parameter.numel() for parameter in vae.parameters())
    assert component["variants"] == ["fp16"] and component["files"] > 2


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("info", "fashion-3200"), 1, "checkpoint is 'fashion-3200'; allowed: a folder"),
        (("info", "EMPTY"), 1, "holds no checkpoint"),
        (("info", "CUT"), 1, "cut short"),
        (("push", "EMPTY", "a/b"), 1, "holds no checkpoint"),
        (("push", "nowhere", "a/b"), 2, "nowhere"),
        (("push", "PICKLE", "a/b"), 1, "is a pickle"),
        (("push", "TINY", "a/b"), 1, "offline"),
        (("pull", "a/b", "TINY"), 1, "is there already"),
        (("pull", "a/b", "NEW"), 1, "offline"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, tiny_folder: Path, tmp_path: Path, arguments, code, reason):
    (tmp_path / "EMPTY").mkdir()
    cut, pickle = (shutil.copytree(tiny_folder, tmp_path / name) for name in ("CUT", "PICKLE"))
    file = cut / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    (pickle / "unet" / "extra.bin").write_bytes(b"\x80\x04.")
    names = {"TINY": tiny_folder, **{name: tmp_path / name for name in ("EMPTY", "CUT", "PICKLE", "NEW")}}
    got, output, errors = run(*(names.get(item, item) for item in arguments))
    assert (got, output) == (code, "")
    assert "Traceback" not in errors and reason in errors
    if code == 1:
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert reason in line
    assert not (tmp_path / "NEW").exists()
