"""Caches hold what the networks give, and are made anew when anything that made them changes."""

import dataclasses
import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from processes import by_two
from tiny_data import Terminal, fashion
from transformers import CLIPTextModel

from guided_diffusers.core.condition import tokenize
from guided_diffusers.core.randomness import randn_for
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.training.data import cache
from guided_diffusers.training.data.cache import cached_embeddings, cached_latents, fingerprint
from guided_diffusers.training.data.captions import text_config_for, train_tokenizer
from guided_diffusers.training.data.dataset import ImageTextDataset


def make_autoencoder(seed=0):
    torch.manual_seed(seed)
    return VariationalAutoencoder(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        norm_num_groups=4,
        latent_channels=2,
        mid_block_add_attention=False,
        latents_mean=(0.3, -0.1),
        latents_std=(0.5, 2.0),
    )


@pytest.fixture
def data(tmp_path):
    return fashion(tmp_path / "cache")


def test_moments_are_those_of_encoding_directly(data):
    autoencoder = make_autoencoder().eval()
    latents = cached_latents(autoencoder, data, batch_size=10)
    with torch.no_grad():
        posterior = autoencoder.encode(data.pixels(range(64))).latent_dist
    mean, std = latents.moments(range(64))
    assert len(latents) == 64 and mean.shape == (64, 2, 8, 8)
    torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, posterior.std, atol=1e-5, rtol=1e-5)


def test_processes_that_encode_a_share_each_write_what_one_writes(data, tmp_path):
    def encoded(rows):
        return {
            "moments": torch.stack(cached_latents(make_autoencoder(), rows, batch_size=10).moments(range(64)))
        }

    shared = fashion(tmp_path / "shared")
    parts = by_two(lambda rank: encoded(shared), tmp_path)
    assert all(torch.equal(part["moments"], encoded(data)["moments"]) for part in parts)
    before = os.stat(file := next((tmp_path / "shared").glob("latents-*.npy"))).st_mtime_ns
    encoded(shared)
    assert os.stat(file).st_mtime_ns == before, "one process does not find what two have made"


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_encoding_shows_its_progress_on_a_terminal(data, monkeypatch, kind):
    stream, terminal = kind(), kind is Terminal
    monkeypatch.setattr(sys, "stderr", stream)
    cached_latents(make_autoencoder(), data, batch_size=10)
    assert ("encoding latents: 100%" in stream.getvalue()) == terminal == bool(stream.getvalue())


def test_a_draw_is_the_mean_plus_the_deviation_times_noise_and_new_each_time(data):
    latents = cached_latents(make_autoencoder(), data)
    mean, std = latents.moments([7, 7])
    noise = randn_for(0, [100, 200], (2, 8, 8))
    drawn = latents.sample([7, 7], noise)
    torch.testing.assert_close(drawn, mean + std * noise)
    assert not torch.equal(drawn[0], drawn[1]) and drawn.dtype == torch.float32
    assert torch.equal(latents.sample([3, 7], randn_for(0, [5, 200], (2, 8, 8)))[1], drawn[1])


def test_the_second_call_reads_the_file(data, monkeypatch):
    autoencoder = make_autoencoder()
    first = cached_latents(autoencoder, data).moments(range(64))

    def fail(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(VariationalAutoencoder, "encode", fail)
    second = cached_latents(autoencoder, data).moments(range(64))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(make_autoencoder(seed=1), data)


@pytest.mark.parametrize("change", ["weights", "statistics", "dtype", "data"])
def test_a_change_of_anything_makes_it_anew_and_says_what(data, change, caplog):
    autoencoder, arguments = make_autoencoder(), {}
    before = cached_latents(autoencoder, data).moments(range(64))[0]
    if change == "weights":
        with torch.no_grad():
            autoencoder.quant_conv.bias.add_(0.5)
    elif change == "statistics":
        autoencoder.set_latent_statistics([0.0, 0.0], [1.0, 1.0])
    elif change == "dtype":
        arguments = {"dtype": "float16"}
    else:
        data.fingerprint = "0" * 64  # as of another state of the same source
    with caplog.at_level(logging.WARNING):
        after = cached_latents(autoencoder, data, **arguments).moments(range(64))[0]
    said = {"weights": "autoencoder", "statistics": "autoencoder"}.get(change, change)
    assert f"was made of another {said}: computing it anew" in caplog.text
    if change == "data":
        assert torch.equal(before, after)
    else:
        assert not torch.equal(before, after)
    caplog.clear()
    cached_latents(autoencoder, data, **arguments)
    assert not caplog.records


def test_runs_with_and_without_mirror_images_have_a_file_each(data, caplog):
    autoencoder = make_autoencoder()
    mirrored = ImageTextDataset(dataclasses.replace(data.config, mirror=True))
    plain = cached_latents(autoencoder, data).moments(range(64))[0]
    with caplog.at_level(logging.WARNING):
        both = cached_latents(autoencoder, mirrored)
        again = cached_latents(autoencoder, data)
    assert not caplog.records and len(both) == 128 and len(again) == 64
    assert torch.equal(both.moments(range(64))[0], plain)
    assert not torch.equal(both.moments(range(64, 128))[0], plain)


def test_half_precision_rounds(data):
    autoencoder = make_autoencoder()
    full = cached_latents(autoencoder, data).moments(range(64))
    half = cached_latents(autoencoder, data, dtype="float16").moments(range(64))
    for one, two in zip(full, half, strict=True):
        assert two.dtype == torch.float32 and torch.equal(one.half().float(), two)


def test_an_interrupted_computation_leaves_nothing_to_believe(data, monkeypatch):
    cached_latents(make_autoencoder(), data)
    folder, other = Path(data.config.cache_dir), make_autoencoder(seed=1)
    real, calls = VariationalAutoencoder.encode, []

    def crash_at_the_second_batch(self, images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(VariationalAutoencoder, "encode", crash_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(other, data, batch_size=16)
    assert not list(folder.glob("*.tmp")) and not list(folder.glob("latents-*.json"))
    monkeypatch.setattr(VariationalAutoencoder, "encode", real)
    with torch.no_grad():
        expected = other.eval().encode(data.pixels(range(64))).latent_dist.mean
    torch.testing.assert_close(
        cached_latents(other, data).moments(range(64))[0], expected, atol=1e-5, rtol=1e-5
    )


def test_the_manifest_says_what_made_it(data):
    autoencoder = make_autoencoder()
    cached_latents(autoencoder, data)
    (manifest,) = Path(data.config.cache_dir).glob("latents-*.json")
    told = json.loads(manifest.read_text())
    assert told["data"] == data.fingerprint and told["autoencoder"] == fingerprint(autoencoder)


def test_training_mode_is_left_as_it_was(data):
    autoencoder = make_autoencoder().train()
    cached_latents(autoencoder, data)
    assert autoencoder.training


def test_embeddings_are_those_of_the_text_encoder(tmp_path, caplog):
    captions = ["", "a photo of a coat", "an ankle boot"]
    tokenizer = train_tokenizer(captions, 600, 12)
    torch.manual_seed(0)
    encoder = CLIPTextModel(text_config_for(tokenizer, 16, 1, 2)).eval()
    embeddings = cached_embeddings(encoder, tokenizer, captions, tmp_path, batch_size=2)
    with torch.no_grad():
        expected = encoder(tokenize(tokenizer, captions)[0])[0]
    assert embeddings.shape == (3, 12, 16)
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=1e-5)
    times = {path: os.stat(path).st_mtime_ns for path in tmp_path.iterdir()}
    again = cached_embeddings(encoder, tokenizer, captions, tmp_path)
    assert torch.equal(again, embeddings)
    assert times == {path: os.stat(path).st_mtime_ns for path in tmp_path.iterdir()}
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    changed = cached_embeddings(encoder, tokenizer, captions, tmp_path)
    assert "another text_encoder" in caplog.text and not torch.equal(changed, embeddings)


def test_fingerprints_tell_networks_apart_by_weights_and_configuration(tmp_path):
    autoencoder = make_autoencoder()
    same = make_autoencoder()
    assert fingerprint(autoencoder) == fingerprint(same)
    autoencoder.save_pretrained(tmp_path)
    assert fingerprint(VariationalAutoencoder.from_pretrained(tmp_path)) == fingerprint(autoencoder)
    assert fingerprint(autoencoder.half()) != fingerprint(same)
    with torch.no_grad():
        bias = same.decoder.conv_out.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))  # by one bit
    assert fingerprint(same) != fingerprint(make_autoencoder())


def test_the_version_is_part_of_the_manifest(data, monkeypatch, caplog):
    cached_latents(make_autoencoder(), data)
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    cached_latents(make_autoencoder(), data)
    assert "another version" in caplog.text
