"""`guided-diffusers likelihood`, in this process, on tiny pipelines."""

import json

import numpy as np
import pytest
import torch
from command_line import runner
from diffusers import DDIMScheduler, DDPMPipeline, LDMPipeline, VQModel
from tiny import shallow_unet

from guided_diffusers import GuidedDDPMScheduler, ImagePipeline
from guided_diffusers.likelihood.bound import estimated_bound


def unet_of(out_channels=2, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shallow_unet(outputs=out_channels, **more).eval()


def scheduler_of(variance_type="learned_range"):
    return GuidedDDPMScheduler(num_train_timesteps=12, variance_type=variance_type)


@pytest.fixture
def checkpoint(tmp_path):
    DDPMPipeline(unet_of(), scheduler_of()).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def data(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz", pixels


@pytest.fixture
def run(monkeypatch, capsys):
    return runner(monkeypatch, capsys, "likelihood")


def test_the_estimate_is_the_librarys(run, checkpoint, data, tmp_path):
    path, pixels = data
    options = ("--crop", 8, "--images", 4, "--draws", 6, "--seed", 3, "--json", "--plot", tmp_path / "a.png")
    code, output, _ = run("--checkpoint", checkpoint, "--data", path, *options)
    record = json.loads(output)
    images = torch.from_numpy(pixels[:4, :, 2:-2, 2:-2]).float() / 127.5 - 1
    expected = estimated_bound(unet_of(), {"a": scheduler_of()}, images, 6, seed=3)["a"]
    assert code == 0 and list(record["bounds"]) == ["fixed_small", "fixed_large", "learned_range"]
    found = record["bounds"]["learned_range"]
    assert found["bits_per_dimension"]["value"] == pytest.approx(expected.total.mean().item(), rel=1e-6)
    assert (found["draws"], found["timesteps"], record["images"]) == (6, 12, 4)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_full_sum_of_chosen_variances_and_a_shorter_chain(run, checkpoint, data):
    options = ("--crop", 8, "--full", 3, "--steps", 4, "--variance", "fixed_large")
    code, output, _ = run("--checkpoint", checkpoint, "--data", data[0], *options)
    assert code == 0 and len(output.splitlines()) == 1
    assert output.startswith("fixed_large: ") and "3 images, 4 of 4 terms each" in output


def test_classes_come_with_the_images(run, tmp_path):
    from PIL import Image

    ImagePipeline(unet=unet_of(1, num_class_embeds=3), scheduler=scheduler_of("fixed_small")).save_pretrained(
        tmp_path / "classes"
    )
    images, lines = tmp_path / "images", []
    images.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 80 * number, np.uint8)).save(images / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "label": number}) + "\n")
    arguments = ("--checkpoint", tmp_path / "classes", "--data", images, "--full", 3)
    code, _, errors = run(*arguments)
    assert code == 1 and "has no column `label`" in errors
    (images / "metadata.jsonl").write_text("".join(lines))
    code, output, _ = run(*arguments)
    assert code == 0 and [line.split(":")[0] for line in output.splitlines()] == [
        "fixed_small",
        "fixed_large",
    ]


def test_what_cannot_be_measured_is_named(run, checkpoint, data, tiny_folder, tmp_path):
    code, _, errors = run("--checkpoint", checkpoint, "--data", data[0])
    assert code == 1 and "is (1, 12, 12); allowed: (1, 8, 8)" in errors and "--crop" in errors
    code, _, errors = run("--checkpoint", checkpoint, "--data", data[0], "--crop", 20)
    assert code == 1 and "crop is 20" in errors
    code, _, errors = run("--checkpoint", tiny_folder, "--data", data[0])
    assert code == 1 and "no autoencoder" in errors
    vqvae = VQModel(latent_channels=1, block_out_channels=(8,), norm_num_groups=4)  # latents as images
    LDMPipeline(vqvae, unet_of(1), DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    code, _, errors = run("--checkpoint", tmp_path / "ldm", "--data", data[0], "--crop", 8, "--full", 2)
    assert code == 1 and "vqvae" in errors and "no autoencoder" in errors
    code, _, errors = run("--checkpoint", "fashion-32", "--data", data[0])  # one that ships
    assert code == 1 and "no autoencoder" in errors
    code, _, errors = run(
        "--checkpoint", checkpoint, "--data", data[0], "--crop", 8, "--full", 2, "--variance", "a"
    )
    assert code == 1 and "variance_type is 'a'; allowed: 'fixed_small'" in errors
