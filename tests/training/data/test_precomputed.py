"""Latents and embeddings in shards: those that the networks give, resumed shard by shard, and trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_data import sliced_tars
from training_scripts import load, read, records, train

from guided_diffusers import pretrained
from guided_diffusers.core.condition import encode_text, tokenize
from guided_diffusers.models.latents import encode
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import image_arguments, load_autoencoder
from guided_diffusers.training.data.precomputed import EMBEDDINGS, MOMENTS, Precomputed
from guided_diffusers.training.data.rows import CAPTIONS
from guided_diffusers.training.data.stream import ImageTextStream
from guided_diffusers.training.engine.config import parse_config
from guided_diffusers.training.engine.order import Share
from guided_diffusers.training.tasks.precompute import PrecomputeConfig, precompute
from guided_diffusers.training.tasks.text import TextConfig, load_text

FROZEN = TextConfig(encoder="frozen", pretrained=str(pretrained("fashion-32")))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of the slice in four tars, of which one row has no picture, in float32."""
    folder = tmp_path_factory.mktemp("precomputed")
    data = DataConfig(
        path=str(sliced_tars(folder / "tars")), image_column="png", caption_column="txt", channels=1
    )
    return PrecomputeConfig(
        output_dir=str(folder / "shards"),
        data=data,
        autoencoder="fashion-32/vae",
        text=FROZEN,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def shards(config):
    done = precompute(config, torch.device("cpu"))
    assert done == {"shards": 4, "rows": 63, "skipped": 1}
    return config.output_dir


def first_rows(path, **data):
    stream = ImageTextStream(DataConfig(path=path, stream=True, channels=1, caption_column="txt", **data), 0)
    with stream.reader(None, Share(batch_size=32)) as reader:
        return stream, reader(range(32))[0]


def test_what_is_in_them(config, shards):
    _, rows = first_rows(shards)
    _, pictures = first_rows(config.data.path, image_column="png", shuffle_buffer=64)
    captions = [options[0] for options in rows.columns[CAPTIONS]]
    assert len(set(captions)) > 5
    vae, (tokenizer, encoder) = load_autoencoder("fashion-32/vae"), load_text(FROZEN)
    with torch.no_grad():
        embedded = encode_text(encoder, *tokenize(tokenizer, captions))
        moments = torch.stack(encode(vae, pictures.columns["pixels"].float() / 127.5 - 1), dim=1)
    stored = torch.stack([options[0] for options in rows.columns[EMBEDDINGS]])
    torch.testing.assert_close(stored, embedded, rtol=1e-4, atol=1e-4)
    nearest = torch.cdist(moments.flatten(1), rows.columns[MOMENTS].flatten(1)).min(dim=1).values
    assert (nearest < 1e-2).sum() > 8  # rows that both happen to give first


def test_what_was_stopped_goes_on_and_other_networks_are_refused(config, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "half")
    removed = Precomputed.of(folder).shard(folder, 2)
    removed.unlink()
    done = precompute(replace(config, output_dir=str(folder)), torch.device("cpu"))
    assert done == {"shards": 1, "rows": 15, "skipped": 1} and removed.is_file()
    other = replace(config, output_dir=str(folder), dtype="float16")
    with pytest.raises(ValueError, match="was made with dtype 'float32', and now it is 'float16'"):
        precompute(other, torch.device("cpu"))


def test_a_run_must_be_of_the_same_autoencoder_and_pictures(shards):
    stream, _ = first_rows(shards)
    with pytest.raises(ValueError, match="latents of another autoencoder"):
        image_arguments(stream, None)
    small, _ = first_rows(shards, resolution=16)
    with pytest.raises(ValueError, match="data.resolution is 16; allowed: 32"):
        image_arguments(small, load_autoencoder("fashion-32/vae"))


def test_a_run_on_shards_by_the_commands_that_the_documentation_gives(config, shards, tmp_path):
    script, file = load("train_text_to_image"), tmp_path / "my.yaml"
    tree = {
        "data": {"path": shards, "stream": True, "caption_column": "txt", "channels": 1},
        "autoencoder": "fashion-32/vae",
        "text": {"encoder": "frozen", "pretrained": str(pretrained("fashion-32"))},
        "training": {"output_dir": str(tmp_path / "run"), "num_images": 64, "batch_size": 32}
        | {"validate_every_images": 0, "log_every_images": 32, "snapshot_fractions": []},
        "unet": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
        | {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2}
        | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]},
    }
    file.write_text(json.dumps(tree))
    words = ["--config", str(file), "--output_dir", "x"]
    assert parse_config(PrecomputeConfig, words, ignore_others=True).text == FROZEN
    assert read(script, "--config", file).data.stream
    train(script, "--config", file)
    assert [record["rows_skipped"] for record in records(tmp_path / "run")] == [0, 0]
