"""Every pipeline and every model of the package refuses every hostile checkpoint, in one line, unharmed."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hostile import (
    EXPLODED,
    Spoil,
    code_of_a_pipeline,
    code_of_a_tokenizer,
    component,
    component_config,
    config,
    config_text,
    cut,
    fill,
    header,
    index,
    link_in_a_ring,
    link_out,
    pickle_beside_weights,
    pickle_in_place_of_weights,
    reshape,
    shards,
    tensor_header,
    weights,
)
from subjects import MODELS, PIPELINES, made

import guided_diffusers

DEEP = "[" * 100_000
NETWORK: dict[str, Spoil] = {
    "a pickle and no safetensors": pickle_in_place_of_weights,
    "weights linked to outside": link_out("diffusion_pytorch_model.safetensors"),
    "a configuration linked to outside": link_out("config.json"),
    "a link to itself": link_in_a_ring,
    "a shard outside": shards({"metadata": {}, "weight_map": {"a": "CLIMBING"}}),
    "a shard outside, beside weights": shards({"metadata": {}, "weight_map": {"a": "CLIMBING"}}, keep=True),
    "an absolute shard": shards({"metadata": {}, "weight_map": {"a": "/etc/passwd"}}),
    "a shard that is a pickle": shards({"metadata": {}, "weight_map": {"a": "model.bin"}}),
    "a shard that is not there": shards({"metadata": {}, "weight_map": {"a": "a-1-of-2.safetensors"}}),
    "a shard that is a number": shards({"metadata": {}, "weight_map": {"a": 3}}),
    "a shard that is no weights": shards({"weight_map": {"a": "config.json"}}),
    "an index of no shards": shards({"metadata": {}, "weight_map": {}}),
    "an index without a map": shards({}),
    "an index that is a list": shards([]),
    "an index that is no JSON": shards("{"),
    "a NaN weight": fill(float("nan")),
    "an infinite weight": fill(float("-inf")),
    "a weight of another shape": weights(reshape),
    "a missing weight": weights(lambda tensors, key: tensors.pop(key)),
    "no bytes": cut(0),
    "cut in the header": cut(100),
    "cut at the end": cut(-10),
    "a header of 2^40 bytes": header("{}", 2**40),
    "a header of 2^63 bytes": header("{}", 2**63),
    "an empty header": header("{}"),
    "a header that is a list": header("[]"),
    "a header nested without end": header(DEEP),
    "a negative shape": tensor_header(shape=[-1]),
    "a shape of text": tensor_header(shape="x"),
    "a gigantic shape": tensor_header(shape=[2**40, 2**40]),
    "a configuration that is a list": config_text("[]"),
    "a configuration that is null": config_text("null"),
    "a configuration that is NaN": config_text("NaN"),
    "a configuration that names a repository": config_text('"somebody/evil"'),
    "a configuration that is no JSON": config_text("{"),
    "a configuration that is binary": config_text(b"\xff\xfe{}"),
    "a configuration nested without end": config_text(DEEP),
    "negative channels": config(in_channels=-1, block_out_channels=[-8, -8]),
    "NaN channels": config(block_out_channels=[float("nan"), 8]),
    "channels of terabytes": config(block_out_channels=[2**22, 2**22], latent_channels=2**40),
    "channels beyond integers": config(block_out_channels=[2**70, 2**70], in_channels=2**70),
    "a billion layers": config(layers_per_block=10**9),
    "negative layers": config(layers_per_block=-1),
    "a gigantic sample": config(sample_size=2**40),
    "a sample of text": config(sample_size="x"),
    "a class that is a path": config(_class_name="../evil.Evil"),
    "a class of the system": config(_class_name="os.system"),
    "a class that is a list": config(_class_name=["evil", "Evil"]),
    "code of its own": config(auto_map={"AutoModel": "evil.Evil"}),
    "attention from elsewhere": config(attn_implementation="somebody/evil"),
}
PIPELINE: dict[str, Spoil] = {
    "a class of the system as component": component("os", "system"),
    "a module of diffusers as component": component("diffusers.utils", "logging"),
    "a library that is a path": component("../evil", "Evil"),
    "a component that is a number": component(1, 2),
    "a component of another kind": component("transformers", "CLIPTokenizer"),
    "a pipeline as component": component("diffusers", "DiffusionPipeline"),
    "a component that is a path": index(**{"../evil": ["diffusers", "UNet2DModel"]}),
    "one component too many": index(evil=["os", "system"]),
    "a pipeline's class that is a path": index(_class_name="os.system"),
    "a pipeline's class that is a number": index(_class_name=3),
    "a pipeline's code": code_of_a_pipeline,
}
TOKENIZER: dict[str, Spoil] = {
    "a tokenizer's code": code_of_a_tokenizer,
    "a tokenizer's class": component_config(
        "tokenizer", "tokenizer_config.json", tokenizer_class="os.system"
    ),
    "a tokenizer without vocabulary": lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
    "a tokenizer that is no JSON": lambda folder: (
        (folder / "tokenizer" / "tokenizer.json").write_text("{") and None
    ),
}
SCHEDULER: dict[str, Spoil] = {
    name: component_config("scheduler", "scheduler_config.json", **values)
    for name, values in {
        "a scheduler of 2^40 timesteps": {"num_train_timesteps": 2**40},
        "a scheduler of NaN": {"beta_start": float("nan")},
        "a scheduler of text": {"num_train_timesteps": "x"},
        "a scheduler's class": {"_class_name": "os.system"},
        "betas above 1": {"beta_end": 2.0},
        "an unknown schedule": {"beta_schedule": "evil"},
    }.items()
}


def cases_of(name: str) -> dict[str, Spoil]:
    """What can be wrong with a checkpoint of a class."""
    if name in MODELS:
        return NETWORK
    cases = {**NETWORK, **PIPELINE}
    cases |= TOKENIZER if "TextToImage" in name else {}
    return cases | (SCHEDULER if name != "VAEPipeline" else {})


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every pipeline and model, saved under its name."""
    folder = tmp_path_factory.mktemp("subjects")
    for name in {**PIPELINES, **MODELS}:
        made(name).save_pretrained(folder / name)
    return folder


def refuse(saved: Path, tmp_path: Path, name: str, case: str) -> None:
    """Load a spoiled copy, and see it refused."""
    folder = tmp_path / case.replace(" ", "-").replace("^", "") / "checkpoint"
    shutil.copytree(saved / name, folder)
    cases_of(name)[case](folder)
    began = time.monotonic()
    with pytest.raises(OSError) as refused:
        getattr(guided_diffusers, name).from_pretrained(folder)
    message = str(refused.value)
    assert message and "\n" not in message and len(message) < 700, f"{case}: {message!r}"
    assert time.monotonic() - began < 20, case
    assert not (folder / EXPLODED).exists(), case


@pytest.mark.parametrize("case", cases_of("ImagePipeline"))
def test_a_hostile_checkpoint_is_refused(saved: Path, tmp_path: Path, case: str):
    refuse(saved, tmp_path, "ImagePipeline", case)


WITHOUT = ("ImagePipeline", "CascadePipeline")
"""One that loads as others do, and one whose parts are others: test_cascade.py."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in {**PIPELINES, **MODELS} if name not in WITHOUT])
def test_every_class_refuses_every_hostile_checkpoint(saved: Path, tmp_path: Path, name: str):
    for case in cases_of(name):
        refuse(saved, tmp_path, name, case)


@pytest.mark.parametrize("name", {**PIPELINES, **MODELS})
def test_what_is_right_loads_and_a_pickle_beside_it_stays_closed(saved: Path, tmp_path: Path, name: str):
    folder = tmp_path / "checkpoint"
    shutil.copytree(saved / name, folder)
    pickle_beside_weights(folder)
    getattr(guided_diffusers, name).from_pretrained(folder)
    assert not (folder / EXPLODED).exists()


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "shared"])
def test_links_within_the_cache_of_the_hub_are_followed(saved: Path, tmp_path: Path, shared: bool):
    """A snapshot is made of links to its repository's blobs, which may be links to those of the cache."""
    repository = tmp_path / "models--somebody--vae"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    shutil.copytree(saved / "VAEPipeline", snapshot)
    for folder in (blobs, tmp_path / "blobs"):
        folder.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        content = (tmp_path / "blobs" if shared else blobs) / str(number)
        shutil.move(path, content)
        if shared:
            (blobs / str(number)).symlink_to(content)
        path.symlink_to(blobs / str(number))
    guided_diffusers.VAEPipeline.from_pretrained(snapshot)
    guided_diffusers.VariationalAutoencoder.from_pretrained(snapshot / "vae")
    (snapshot / "vae" / "stolen.json").symlink_to(tmp_path / "stolen.json")
    with pytest.raises(OSError, match="leaves the checkpoint's folder"):
        guided_diffusers.VAEPipeline.from_pretrained(snapshot)


def test_text_encoders_within_a_model_are_checked_too(saved: Path, tmp_path: Path):
    folder = tmp_path / "clip"
    shutil.copytree(saved / "NoiseAwareCLIP", folder)
    own = json.loads((folder / "config.json").read_text())
    for change in ({"num_hidden_layers": 10**9}, {"_attn_implementation": "a/b"}, {"vocab_size": 2**40}):
        text = {**own["text_config"], **change}
        (folder / "config.json").write_text(json.dumps({**own, "text_config": text}))
        with pytest.raises(OSError, match="refused"):
            guided_diffusers.NoiseAwareCLIP.from_pretrained(folder)
