"""VAEPipeline: the prior, reconstructions, paths and planes, files; other pipelines on the same model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from tiny import tiny_autoencoder, tiny_components

from guided_diffusers import TextToImagePipeline, VAEPipeline
from guided_diffusers.pipelines.vae import spherical


def pipeline(seed=0, **overrides):
    """Grey images of 16x16; raw and standardised latents differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result = VAEPipeline(tiny_autoencoder(**overrides))
    result.set_progress_bar_config(disable=True)
    return result


@pytest.fixture(scope="module")
def vector():
    return pipeline(latent="vector", likelihood="bernoulli")


@pytest.fixture(scope="module")
def spatial():
    return pipeline()


@pytest.fixture(scope="module")
def plain():
    return pipeline(latent="vector", posterior="deterministic")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=2, seed=5):
    return torch.rand(count, 1, 16, 16, generator=generator(seed)) * 2 - 1


def unit(sample):
    return (sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(("kind", "shape"), [("vector", (2, 1, 1)), ("spatial", (2, 8, 8))])
def test_it_decodes_standard_normal_raw_latents(kind, shape, request):
    pipe = request.getfixturevalue(kind)
    latents = torch.randn(3, *shape, generator=generator())
    drawn = pipe(3, generator(), output_type="pt").images
    with torch.no_grad():
        expected = unit(pipe.vae.decode_raw(latents))
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe(latents=latents, output_type="pt").images, drawn)
    standardised = pipe.vae.decode(latents).sample.detach()
    assert not torch.allclose(unit(standardised), drawn, atol=1e-3)  # they are not what `decode` takes


def test_one_generator_an_image_makes_it_independent_of_the_batch(vector):
    both = vector(2, [generator(1), generator(2)], output_type="pt").images
    alone = vector(1, [generator(2)], output_type="pt").images
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_output_types_show_the_same(vector):
    pt, np_, pil = (vector(2, generator(), output_type=kind).images for kind in ("pt", "np", "pil"))
    assert pt.shape == (2, 1, 16, 16) and np_.shape == (2, 16, 16, 1)
    np.testing.assert_allclose(np_.transpose(0, 3, 1, 2), pt.numpy())
    assert [image.size for image in pil] == [(16, 16)] * 2
    assert np.abs(np.asarray(pil[0], dtype=float) / 255 - np_[0, ..., 0]).max() <= 0.51 / 255
    assert torch.equal(vector(2, generator(), output_type="pt", return_dict=False)[0], pt)


def test_a_spatial_prior_has_any_size(spatial):
    assert spatial(height=8, width=24, output_type="pt").images.shape == (1, 1, 8, 24)


def test_reconstructions_are_the_model_s(vector, spatial, plain):
    for pipe in (vector, spatial, plain):
        given = images()
        with torch.no_grad():
            expected = unit(pipe.vae(given).sample)
        ours = pipe.reconstruct(given, output_type="pt").images
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_picture_is_read_as_the_tensor_of_its_pixels(vector):
    pixels = (unit(images(1)) * 255).round().byte()
    picture = Image.fromarray(pixels[0, 0].numpy())
    one, other = (
        vector.reconstruct(given, output_type="pt").images for given in (picture, pixels.float() / 127.5 - 1)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    bright = images().abs()  # a tensor is in [-1, 1] whether or not it has both signs
    with torch.no_grad():
        expected = unit(vector.vae(bright).sample)
    ours = vector.reconstruct(bright, output_type="pt").images
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["spherical", "linear"])
def test_a_path_leads_from_one_reconstruction_to_the_other(vector, spatial, method):
    for pipe in (vector, spatial):
        a, b = images(2).split(1)
        path = pipe.interpolate(a, b, steps=5, method=method, output_type="pt").images
        ends = pipe.reconstruct(images(2), output_type="pt").images
        assert path.shape == (5, 1, 16, 16)
        torch.testing.assert_close(path[[0, -1]], ends, atol=1e-5, rtol=0)
        steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
        assert (steps > 0).all()


def test_a_spherical_path_keeps_to_the_sphere_at_a_constant_rate():
    a = torch.randn(1, 6, 1, 1, generator=generator(), dtype=torch.float64)
    b = torch.randn(1, 6, 1, 1, generator=generator(1), dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    path = [spherical(a, b, fraction) for fraction in torch.linspace(0, 1, 6).double().tolist()]
    assert all(point.norm().item() == pytest.approx(1) for point in path)
    angles = [(p * q).sum().clamp(-1, 1).acos().item() for p, q in zip(path, path[1:], strict=False)]
    assert angles == pytest.approx([angles[0]] * 5) and angles[0] > 0.1
    torch.testing.assert_close(spherical(a, a, 0.5), a)
    torch.testing.assert_close(spherical(a, 3 * a, 0.5), 2 * a)  # parallel: the straight path


def test_a_traversal_is_a_grid_over_two_dimensions(vector):
    base = torch.randn(1, 2, 1, 1, generator=generator())
    grid = vector.traverse((1, 0), steps=3, span=2.0, latents=base, output_type="pt").images
    assert grid.shape == (1, 1, 48, 48)
    for row, second in enumerate((2.0, 0.0, -2.0)):  # the second dimension grows upwards
        for column, first in enumerate((-2.0, 0.0, 2.0)):
            latents = torch.tensor([second, first]).view(1, 2, 1, 1)
            expected = vector(latents=latents, output_type="pt").images[0]
            cell = grid[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            torch.testing.assert_close(cell, expected, atol=1e-5, rtol=0)
    (picture,) = vector.traverse(steps=4).images
    assert picture.size == (64, 64)


def test_a_traversal_of_a_map_moves_whole_channels_and_leaves_the_others():
    pipe = pipeline(latent_channels=3, latents_mean=None, latents_std=None)
    base = torch.randn(1, 3, 8, 8, generator=generator())
    grid = pipe.traverse((0, 2), steps=2, span=1.0, latents=base, output_type="pt").images
    moved = base.clone()
    moved[:, 0], moved[:, 2] = -1.0, 1.0
    expected = pipe(latents=moved, output_type="pt").images
    torch.testing.assert_close(grid[..., :16, :16], expected, atol=1e-5, rtol=0)


def test_a_plain_autoencoder_has_no_prior(plain):
    with pytest.raises(ValueError, match="'deterministic': a plain autoencoder has no prior.*give latents"):
        plain(2)
    with pytest.raises(ValueError, match="has no prior.*give the latents to start from"):
        plain.traverse()
    codes = plain.vae.posterior(images()).mean.detach()
    decoded = plain(latents=codes, output_type="pt").images
    torch.testing.assert_close(decoded, plain.reconstruct(images(), output_type="pt").images)
    assert plain.traverse(latents=codes[:1], steps=2, output_type="pt").images.shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(0), "batch_size is 0"),
        (lambda p: p(2, [generator()]), "generator is a list of 1 for 2"),
        (lambda p: p(output_type="latent"), "output_type is 'latent'; allowed: 'pil', 'np', 'pt'"),
        (lambda p: p(latents=torch.zeros(1, 2, 8, 8)), r"latents has shape .* allowed: \(batch, 2, 1, 1\)"),
        (lambda p: p(height=32), r"size is \(32, 16\)"),
        (
            lambda p: p.reconstruct(torch.zeros(1, 3, 16, 16)),
            r"images has shape .* \(batch, 1, height, width\)",
        ),
        (lambda p: p.reconstruct(torch.full((1, 1, 16, 16), 255.0)), "images reach from 255 to 255"),
        (lambda p: p.reconstruct(Image.new("L", (20, 20))), r"size is \(20, 20\)"),
        (lambda p: p.interpolate(images(), images()), "a holds 2 images"),
        (lambda p: p.interpolate(images(1), images(1), steps=1), "steps is 1; allowed: at least 2"),
        (
            lambda p: p.interpolate(images(1), images(1), method="cubic"),
            "method is 'cubic'; allowed: 'spherical'",
        ),
        (lambda p: p.traverse((0, 2)), "dims is .* allowed: two different latent channels of 0 to 1"),
        (lambda p: p.traverse((1, 1)), "dims is .* two different"),
        (lambda p: p.traverse(span=0.0), "span is 0.0"),
        (lambda p: p.traverse(latents=torch.zeros(2, 2, 1, 1)), "latents holds 2"),
    ],
)
def test_errors_name_the_argument(vector, call, message):
    with pytest.raises(ValueError, match=message):
        call(vector)


def test_stable_diffusion_runs_with_the_model_in_it_and_decodes_the_same_image():
    """A likelihood's decoder too; the denoised latents are standardised, ours raw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        components = tiny_components(vae=tiny_autoencoder(likelihood="discretised_logistic"))
    theirs = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    ours = TextToImagePipeline(**components, requires_safety_checker=False)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)

    def draw(pipe, output_type):
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": output_type}
        return pipe("a bag", generator=generator(), **options).images

    latents, image = draw(theirs, "latent"), draw(theirs, "pt")
    raw = components["vae"].destandardise(latents)
    decoded = VAEPipeline(components["vae"])(latents=raw, output_type="pt").images
    assert image.shape == (1, 1, 16, 16) and image.std() > 0.01
    torch.testing.assert_close(decoded, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(draw(ours, "pt"), image, atol=1e-5, rtol=0)


LOAD = """
import json, sys, torch
import guided_diffusers
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
image = pipe(2, torch.Generator().manual_seed(3), output_type="pt").images
print(json.dumps([type(pipe).__name__, type(pipe.vae).__name__, image.flatten().tolist()]))
"""


@pytest.mark.slow
def test_a_fresh_process_loads_it_through_diffusers(vector, tmp_path):
    vector.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "VAEPipeline"
    assert index["vae"] == ["guided_diffusers", "VariationalAutoencoder"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr
    names, model, values = json.loads(process.stdout.splitlines()[-1])
    assert (names, model) == ("VAEPipeline", "VariationalAutoencoder")
    expected = vector(2, generator(3), output_type="pt").images
    torch.testing.assert_close(torch.tensor(values), expected.flatten(), atol=1e-6, rtol=0)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is VAEPipeline and type(VAEPipeline.from_pretrained(tmp_path)) is VAEPipeline
