"""Laws of the autoencoder: standardisation, drop-in for AutoencoderKL, and the rule of no pickles."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tiny import randn

from guided_diffusers import pretrained
from guided_diffusers.models import VariationalAutoencoder, VariationalAutoencoderOutput

CONFIG = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "sample_size": 16,
}
MEAN, STD = [0.1, -0.2, 0.3], [0.5, 2.0, 3.0]


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return AutoencoderKL(**CONFIG).eval()


@pytest.fixture
def model(original):
    model = VariationalAutoencoder.from_autoencoder_kl(original)
    model.set_latent_statistics(MEAN, STD)
    return model


def column(values):
    return torch.tensor(values).view(1, -1, 1, 1)


@pytest.fixture
def images():
    return randn(2, 3, 16, 16).clamp(-1, 1)


class TestDropIn:
    def test_what_is_raw_is_autoencoder_kl(self, original, images):
        ours = VariationalAutoencoder.from_autoencoder_kl(original)
        with torch.no_grad():
            a, b = ours.posterior(images), original.encode(images).latent_dist
            assert a.mean.equal(b.mean) and a.logvar.equal(b.logvar)
            assert ours.decode_raw(b.mean).equal(original.decode(b.mean).sample)
            for draw in (False, True):
                seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
                x, y = (
                    m(images, draw, generator=g)[0] for m, g in zip((ours, original), seeded, strict=True)
                )
                assert x.equal(y)

    def test_loads_its_folder(self, original, images, tmp_path):
        """With its scale as statistics; saved and loaded again it is the same."""
        original.save_pretrained(tmp_path / "theirs")
        config = json.loads((tmp_path / "theirs" / "config.json").read_text())
        del config["scaling_factor"]  # as in old folders, which mean their class's own
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
        ours = VariationalAutoencoder.from_pretrained(tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        again = VariationalAutoencoder.from_pretrained(tmp_path / "ours")
        with torch.no_grad():
            latents = original.encode(images).latent_dist.mode() * 0.18215
            made = [VariationalAutoencoder.from_config(config) for config in (ours.config, original.config)]
            for model in (ours, again, *made):
                assert model.config.scaling_factor == 1 and model.config.latents_mean == [0.0] * 3
                assert model.config.latents_std == pytest.approx([1 / 0.18215] * 3, rel=1e-12)
            for model in (ours, again):
                torch.testing.assert_close(model(images).sample, original(images).sample, atol=1e-5, rtol=0)
                torch.testing.assert_close(model.encode(images).latent_dist.mode(), latents)
        given = {
            k: v
            for k, v in original.config.items()
            if k not in ("scaling_factor", "latents_mean", "latents_std") and not k.startswith("_")
        }
        assert {k: ours.config[k] for k in given} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in given.items()
        }
        assert VariationalAutoencoder(**CONFIG).config.latents_std is None

    def test_copies_dtype_and_mode(self):
        model = AutoencoderKL(**CONFIG).to(torch.bfloat16).train()
        ours = VariationalAutoencoder.from_autoencoder_kl(model)
        assert ours.dtype == torch.bfloat16 and ours.training


class TestStandardisation:
    def test_encode_gives_the_posterior_of_the_standardised_latent(self, model, images):
        raw, ours = model.posterior(images), model.encode(images).latent_dist
        torch.testing.assert_close(ours.mean, (raw.mean - column(MEAN)) / column(STD))
        torch.testing.assert_close(ours.std, raw.std / column(STD))
        draws = [d.sample(torch.Generator().manual_seed(3)) for d in (raw, ours)]
        torch.testing.assert_close(draws[1], (draws[0] - column(MEAN)) / column(STD))
        assert model.encode(images, return_dict=False)[0].mean.equal(ours.mean)

    def test_decode_undoes_it(self, model, original, images):
        with torch.no_grad():
            raw = original.encode(images).latent_dist.mean
            ours = model.decode(model.encode(images).latent_dist.mean).sample
            torch.testing.assert_close(ours, original.decode(raw).sample, atol=1e-5, rtol=0)
            assert model.decode(raw, return_dict=False)[0].shape == images.shape

    def test_measured_statistics_standardise(self, original):
        model = VariationalAutoencoder.from_autoencoder_kl(original)
        many = randn(32, 3, 16, 16)
        with torch.no_grad():
            raw = model.posterior(many).sample(torch.Generator().manual_seed(0))
            model.set_latent_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
            latents = model.encode(many).latent_dist.sample(torch.Generator().manual_seed(0))
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)

    def test_does_not_change_the_reconstruction(self, model, original, images):
        with torch.no_grad():
            assert model(images).sample.equal(original(images).sample)

    @pytest.mark.parametrize("option", ["slicing", "tiling"])
    def test_slicing_and_tiling(self, model, original, option):
        batch = randn(2, 3, 32, 32)
        for autoencoder in (model, original):
            getattr(autoencoder, f"enable_{option}")()
        try:
            with torch.no_grad():
                raw = original.encode(batch).latent_dist.mean
                ours = model.encode(batch).latent_dist.mean
                torch.testing.assert_close(ours, (raw - column(MEAN)) / column(STD))
                decoded = original.decode(raw).sample
                torch.testing.assert_close(model.decode(ours).sample, decoded, atol=1e-5, rtol=0)
        finally:
            getattr(original, f"disable_{option}")()

    @pytest.mark.parametrize(
        ("mean", "std", "word"),
        [
            ([0.0] * 2, STD, "latents_mean is .*allowed: 3 finite numbers"),
            ([0.0, float("nan"), 0.0], STD, "latents_mean is .*allowed: 3 finite numbers"),
            (MEAN, [1.0, float("inf"), 1.0], "latents_std is .*allowed: 3 finite numbers"),
            (MEAN, [1.0, 0.0, 1.0], "latents_std is .*allowed: 3 finite numbers above 0"),
        ],
    )
    def test_bad_statistics(self, model, mean, std, word):
        with pytest.raises(ValueError, match=word):
            model.set_latent_statistics(mean, std)
        with pytest.raises(ValueError, match=word):
            VariationalAutoencoder(**CONFIG, latents_mean=mean, latents_std=std)
        assert model.config.latents_mean == MEAN


class TestTraining:
    def test_forward_gives_all_that_a_loss_needs(self, model, images):
        generator = torch.Generator().manual_seed(2)
        output = model(images, sample_posterior=True, generator=generator, return_posterior=True)
        assert isinstance(output, VariationalAutoencoderOutput)
        raw = model.posterior(images)
        assert output.latent_dist.mean.equal(raw.mean)
        plain = model(images, sample_posterior=True, generator=torch.Generator().manual_seed(2))
        assert output.sample.equal(plain.sample)
        assert len(model(images, return_dict=False, return_posterior=True)) == 2
        (output.sample.square().mean() + output.latent_dist.kl().mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_gradient_checkpointing_changes_nothing(self, model, images):
        gradients = []
        for enable in (False, True):
            model.train()
            model.zero_grad()
            if enable:
                model.enable_gradient_checkpointing()
            model(images, return_posterior=True).sample.square().mean().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


VECTOR = CONFIG | {"latent": "vector", "latent_channels": 5, "likelihood": "gaussian"}


class TestFamily:
    @pytest.fixture
    def vector(self):
        torch.manual_seed(0)
        return VariationalAutoencoder(**VECTOR).eval()

    def test_a_vector_is_one_latent_an_image(self, vector, images):
        posterior = vector.posterior(images)
        assert posterior.mean.shape == (2, 5, 1, 1) == (2, *vector.latent_shape())
        assert vector.decode(posterior.mean).sample.shape == images.shape
        assert vector(images).sample.equal(vector.decode_raw(posterior.mean))
        with torch.no_grad():  # every latent number reaches every pixel of the image, and the other way round
            moved = posterior.mean + torch.eye(5)[0].view(1, 5, 1, 1)
            assert (vector.decode(moved).sample != vector.decode(posterior.mean).sample).all()
            corner = images.clone()
            corner[..., 0, 0] += 1
            assert (vector.posterior(corner).mean != posterior.mean).all()

    def test_a_vector_s_images_have_one_size(self, vector):
        for call in (vector.posterior, vector.encode, vector):
            with pytest.raises(
                ValueError, match=r"images' size is \(32, 32\); allowed: \(16, 16\).* latent is 'vector'"
            ):
                call(randn(1, 3, 32, 32))
        with pytest.raises(ValueError, match="cannot be tiled"):
            vector.enable_tiling()
        with pytest.raises(ValueError, match=r"images' size is \(15, 15\); allowed: multiples of 2"):
            VariationalAutoencoder(**VECTOR | {"sample_size": 15})
        with pytest.raises(ValueError, match="latent is 'vector'; allowed: .*use_quant_conv"):
            VariationalAutoencoder(**VECTOR | {"use_quant_conv": False})

    def test_a_vector_of_oblong_images(self):
        model = VariationalAutoencoder(**VECTOR | {"sample_size": (16, 8)})
        images = randn(2, 3, 16, 8)
        assert (
            model.posterior(images).mean.shape == (2, 5, 1, 1) and model(images).sample.shape == images.shape
        )

    def test_spatial_latents_follow_the_images_size(self, model):
        assert model.latent_shape() == (3, 8, 8) and model.latent_shape(32, 16) == (3, 16, 8)
        assert model.posterior(randn(1, 3, 32, 16)).mean.shape == (1, 3, 16, 8)

    def test_a_deterministic_posterior_is_a_point(self, images):
        torch.manual_seed(0)
        model = VariationalAutoencoder(**CONFIG, posterior="deterministic")
        for statistics in (None, (MEAN, STD)):
            if statistics:
                model.set_latent_statistics(*statistics)
            point = model.encode(images).latent_dist
            assert point.mode().equal(point.mean) and point.sample().equal(point.mean)
            assert point.std.equal(torch.zeros_like(point.mean)) and (point.logvar == -torch.inf).all()
            assert (point.mean + point.std * 5.0).equal(point.mean)
            for undefined in (point.kl, lambda point=point: point.nll(point.mean)):
                with pytest.raises(ValueError, match="posterior is 'deterministic'"):
                    undefined()
        assert model(images, sample_posterior=True).sample.equal(model(images).sample)

    def test_it_is_the_limit_of_a_variance_that_goes_to_zero(self, images):
        torch.manual_seed(0)
        gaussian = VariationalAutoencoder(**CONFIG)
        plain = VariationalAutoencoder(**CONFIG, posterior="deterministic")
        plain.load_state_dict(gaussian.state_dict())
        with torch.no_grad():
            gaussian.quant_conv.weight[3:] = 0
            gaussian.quant_conv.bias[3:] = -30.0
            seeded = torch.Generator().manual_seed(0)
            limit = gaussian(images, sample_posterior=True, generator=seeded).sample
            torch.testing.assert_close(limit, plain(images).sample, atol=1e-4, rtol=0)

    def test_decode_gives_the_likelihood_s_mean(self, vector, images):
        torch.manual_seed(0)
        bernoulli = VariationalAutoencoder(**VECTOR | {"likelihood": "bernoulli"}).eval()
        latents = randn(2, 5, 1, 1)
        assert vector.decode(latents).sample.equal(vector.decoder_output(latents))
        logits = bernoulli.decoder_output(latents)
        torch.testing.assert_close(bernoulli.decode(latents).sample, 2 * logits.sigmoid() - 1)
        assert bernoulli(images).sample.abs().max() <= 1

    def test_raw_and_standardised_latents_convert(self, vector):
        vector.set_latent_statistics([0.5] * 5, [2.0] * 5)
        raw = randn(2, 5, 1, 1)
        torch.testing.assert_close(vector.destandardise(vector.standardise(raw)), raw)
        torch.testing.assert_close(vector.decode(vector.standardise(raw)).sample, vector.decode_raw(raw))

    def test_files_keep_the_choices_and_the_variance(self, vector, images, tmp_path):
        torch.nn.init.constant_(vector.decoder_likelihood.log_variance, -1.5)
        vector.save_pretrained(tmp_path)
        again = VariationalAutoencoder.from_pretrained(tmp_path)
        assert again.decoder_likelihood.log_variance.item() == -1.5
        assert (again.config.latent, again.config.posterior, again.config.likelihood) == (
            "vector",
            "gaussian",
            "gaussian",
        )
        assert again(images).sample.equal(vector(images).sample)

    def test_what_shipped_before_loads_strictly(self):
        folder = pretrained("fashion-32") / "vae"
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        assert "posterior" not in config
        model = VariationalAutoencoder.from_pretrained(folder)
        assert model.load_state_dict(weights, strict=True) and model.state_dict().keys() == weights.keys()
        assert model.config.latent == "spatial" and model.config.likelihood is None

    @pytest.mark.parametrize("name", ["posterior", "latent", "likelihood"])
    def test_an_unknown_choice_lists_the_known(self, name):
        with pytest.raises(ValueError, match=f"{name} is 'other'; allowed: "):
            VariationalAutoencoder(**CONFIG, **{name: "other"})


class TestFiles:
    def test_save_and_load_is_bit_equal(self, model, images, tmp_path):
        model.save_pretrained(tmp_path)
        again = VariationalAutoencoder.from_pretrained(tmp_path)
        assert (again.config.latents_mean, again.config.latents_std) == (MEAN, STD)
        state = again.state_dict()
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())
        copy = VariationalAutoencoder.from_config(model.config)
        assert copy.config.latents_std == STD

    def test_never_saves_a_pickle(self, model, tmp_path):
        with pytest.warns(UserWarning, match="safe_serialization=False is ignored"):
            model.save_pretrained(tmp_path / "a", safe_serialization=False)
        with pytest.warns(UserWarning, match="safe_serialization=False is ignored"):
            model.save_pretrained(tmp_path / "b", True, None, False)
        for folder in (tmp_path / "a", tmp_path / "b"):
            assert {f.name for f in folder.iterdir()} == {
                "config.json",
                "diffusion_pytorch_model.safetensors",
            }
        assert load_file(tmp_path / "a" / "diffusion_pytorch_model.safetensors")

    def test_refuses_a_pickle(self, original, tmp_path):
        original.save_pretrained(tmp_path / "vae", safe_serialization=False)
        for arguments in ({}, {"use_safetensors": None}):
            with pytest.raises(OSError, match=r"pickled weights \(diffusion_pytorch_model.bin\).*refused"):
                VariationalAutoencoder.from_pretrained(tmp_path, subfolder="vae", **arguments)
        with pytest.raises(ValueError, match="pickle"):
            VariationalAutoencoder.from_single_file(str(tmp_path / "model.ckpt"))

    def test_a_pickle_beside_safetensors_is_not_read(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"not weights")
        with pytest.warns(UserWarning, match="use_safetensors=False is ignored"):
            VariationalAutoencoder.from_pretrained(tmp_path, use_safetensors=False)

    def test_says_which_file_is_missing(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(OSError, match="no weights in safetensors"):
            VariationalAutoencoder.from_pretrained(tmp_path)
        (tmp_path / "config.json").unlink()
        with pytest.raises(OSError, match="config.json"):
            VariationalAutoencoder.from_pretrained(tmp_path)

    @pytest.mark.slow
    def test_a_fresh_process_decodes_the_same(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        latents = randn(1, 3, 4, 4)
        program = (
            "import sys, torch\n"
            "from guided_diffusers import VariationalAutoencoder\n"
            "torch.set_num_threads(1)\n"
            "model = VariationalAutoencoder.from_pretrained(sys.argv[1])\n"
            "latents = torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))\n"
            "print(model.decode(latents).sample.double().sum().item())\n"
        )
        run = [sys.executable, "-c", program, str(tmp_path)]
        printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        with torch.no_grad():
            expected = VariationalAutoencoder.from_pretrained(tmp_path).decode(latents).sample.double().sum()
        assert float(printed) == pytest.approx(expected.item(), rel=1e-5)


def test_a_pipeline_s_variant_and_shards_reach_it(tiny_pipeline, tmp_path):
    """A pipeline hands on what it finds in the signature of the component's save_pretrained."""
    tiny_pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="8KB")
    names = sorted(path.name for path in (tmp_path / "vae").glob("*.safetensors*"))
    assert len(names) > 2 and all("fp16" in name for name in names)
