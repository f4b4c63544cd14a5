"""Files of weights: which are read, what a save takes the place of, and names that no loader knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import WEIGHTS
from safetensors.torch import load_file, save_file
from tiny import tiny_autoencoder, tiny_components
from torch import nn

from guided_diffusers import TextToImagePipeline, VariationalAutoencoder
from guided_diffusers.store.weight_files import weight_bytes, weights_read

WHOLE, SHARDS, SMALLER_SHARDS = {}, {"max_shard_size": "10KB"}, {"max_shard_size": "8KB"}
ORDERS = [(SHARDS, WHOLE), (WHOLE, SHARDS), (SMALLER_SHARDS, SHARDS)]


def pipeline(seed: int) -> TextToImagePipeline:
    return TextToImagePipeline(**tiny_components(seed), requires_safety_checker=False)


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = dict(second.named_parameters())
    return all(torch.equal(weight, theirs[name]) for name, weight in first.named_parameters())


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("before", "after"), ORDERS)
def test_a_save_takes_the_place_of_an_earlier_one(tmp_path: Path, before: dict, after: dict):
    first, second = pipeline(1), pipeline(2)
    first.save_pretrained(tmp_path / "both", **before)
    first.vae.save_pretrained(tmp_path / "vae", **before)
    for folder in ("both", "alone"):
        second.save_pretrained(tmp_path / folder, **after)
    for folder in ("vae", "alone-vae"):
        second.vae.save_pretrained(tmp_path / folder, **after)
    assert names(tmp_path / "both") == names(tmp_path / "alone")
    assert names(tmp_path / "vae") == names(tmp_path / "alone-vae")
    loaded = TextToImagePipeline.from_pretrained(tmp_path / "both")
    assert all(same(getattr(loaded, part), getattr(second, part)) for part in ("unet", "vae", "text_encoder"))
    assert same(VariationalAutoencoder.from_pretrained(tmp_path / "vae"), second.vae)


def test_weights_of_other_variants_and_of_components_that_are_not_saved_stay(tmp_path: Path):
    first, second = pipeline(1), pipeline(2)
    first.save_pretrained(tmp_path, variant="fp16", **SHARDS)
    first.unet.save_pretrained(tmp_path / "weak_unet", **SHARDS)
    second.save_pretrained(tmp_path, **SHARDS)
    second.save_pretrained(tmp_path, **WHOLE)
    for variant, expected in ((None, second), ("fp16", first)):
        assert same(TextToImagePipeline.from_pretrained(tmp_path, variant=variant).unet, expected.unet)
    assert same(type(first.unet).from_pretrained(tmp_path / "weak_unet"), first.unet)


def test_a_save_that_fails_leaves_the_index(tmp_path: Path):
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path, **SHARDS)
    before = names(tmp_path)
    with pytest.raises(ValueError, match="Unit"):
        tiny_autoencoder().save_pretrained(tmp_path, max_shard_size="much")
    assert names(tmp_path) == before and same(VariationalAutoencoder.from_pretrained(tmp_path), model)


def test_a_loader_reads_its_variant_where_there_is_one(tmp_path: Path):
    plain, old_name = "model.safetensors", "model-00001-of-00002.fp16.safetensors"
    for name in (plain, old_name, "lora.safetensors", "model.bin"):
        (tmp_path / name).touch()
    read = {name: [path.name for path in weights_read(tmp_path, name)] for name in ("", "fp16", "ema")}
    assert read == {"": [plain], "fp16": [old_name], "ema": [plain]}
    assert len(weights_read(tmp_path)) == 3


def adapter(key: str) -> str:
    """As peft renames a layer: X.weight becomes X.base_layer.weight."""
    layer, _, leaf = key.rpartition(".")
    return f"{layer}.base_layer.{leaf}" if layer.endswith(("to_q", "to_k", "to_v")) else key


RENAMED: dict[str, tuple[Callable[[str], str], str]] = {
    "an adapter": (adapter, r"adapter \(LoRA\).*base_layer.*fuse_lora"),
    "torch.compile": ("_orig_mod.{}".format, "have no '.*they have '_orig_mod"),
    "several processes": ("module.{}".format, "have no '.*they have 'module"),
}


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("case", RENAMED)
def test_weights_under_names_that_the_loader_leaves_out_are_refused(tmp_path: Path, case: str, lean: bool):
    rename, words = RENAMED[case]
    pipeline(0).save_pretrained(tmp_path)
    path = tmp_path / "unet" / WEIGHTS
    save_file({rename(key): value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(OSError, match=words):
        TextToImagePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=lean)


def test_attention_under_its_old_names_is_loaded(tmp_path: Path):
    """diffusers' autoencoders before version 0.17, the one of Stable Diffusion among them."""
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert same(VariationalAutoencoder.from_pretrained(tmp_path), model)


class WithAdapter(nn.Module):
    """A layer as it is while an adapter is on."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)

    def forward(self, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        return self.base_layer(hidden)


def test_a_pipeline_with_an_adapter_on_is_not_saved(tmp_path: Path):
    model = pipeline(0)
    attention = next(module for module in model.unet.modules() if hasattr(module, "to_q"))
    attention.to_q = WithAdapter(attention.to_q)
    with pytest.raises(ValueError, match=r"unet has an adapter \(LoRA\).*unload_lora"):
        model.save_pretrained(tmp_path)
    assert not names(tmp_path)
    vae = tiny_autoencoder()
    attention = next(module for module in vae.modules() if hasattr(module, "to_q"))
    attention.to_q = WithAdapter(attention.to_q)
    with pytest.raises(ValueError, match="VariationalAutoencoder has an adapter"):
        vae.save_pretrained(tmp_path)


def test_a_stale_index_of_other_programs_is_refused_with_what_to_do(tmp_path: Path):
    pipeline(0).save_pretrained(tmp_path)
    index = {"metadata": {}, "weight_map": {"conv_in.weight": WEIGHTS.replace(".", "-00001-of-00002.")}}
    (tmp_path / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="delete the index"):
        TextToImagePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)])
def test_the_bytes_of_weights_are_those_that_lie_there(dtype, size):
    """Of bfloat16 too, which NumPy does not have."""
    network = torch.nn.BatchNorm1d(3).to(dtype)
    found = {name: data for name, tensor, data in weight_bytes(network) if tensor.is_floating_point()}
    assert [*found] == ["bias", "running_mean", "running_var", "weight"]
    one = bytes(torch.ones(1, dtype=dtype).view(torch.uint8).tolist())
    assert found["weight"] == 3 * one and len(one) == size
