"""Latents of autoencoders that are not ours: what the pipelines of diffusers make of them, they are here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLWan,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    StableDiffusionPipeline,
    VQModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import PipelineState
from diffusers.modular_pipelines.stable_diffusion_3.decoders import StableDiffusion3DecodeStep
from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep
from tiny import tiny_components, tiny_unet
from tiny_classifier import tiny_image_unet

from guided_diffusers import GuidedDDIMScheduler, ImagePipeline, TextToImagePipeline, VAEPipeline
from guided_diffusers.core.finite import NonFiniteError
from guided_diffusers.models import VariationalAutoencoder, latents
from guided_diffusers.training.data.images import load_autoencoder

KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 2.0, 3.0, 1.0]}
CONVENTIONS = {
    "SD": (StableDiffusionXLDecodeStep, {}),
    "SDXL": (StableDiffusionXLDecodeStep, {"scaling_factor": 0.13025}),
    "Playground": (StableDiffusionXLDecodeStep, {"scaling_factor": 0.5, **STATISTICS}),
    "statistics alone": (StableDiffusionXLDecodeStep, {"scaling_factor": 1.0, **STATISTICS}),
    "SD3": (StableDiffusion3DecodeStep, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "FLUX": (StableDiffusion3DecodeStep, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "raw": (StableDiffusionXLDecodeStep, {"scaling_factor": 1.0}),
}


def seeded(cls, *args, **arguments):
    torch.manual_seed(0)
    return cls(*args, **arguments).eval()


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock(step, vae, z):
    """The images that a stock pipeline's decoding makes of latents, in [0, 1]."""
    state = PipelineState()
    state.set("latents", z)
    state.set("output_type", "pt")
    step()(SimpleNamespace(vae=vae, image_processor=VaeImageProcessor()), state)
    return state.get("images")


@pytest.mark.parametrize("name", CONVENTIONS)
class TestConventions:
    """The autoencoder itself, and what training loads of its folder, agree with diffusers."""

    @pytest.fixture
    def kl(self, name):
        return seeded(AutoencoderKL, **KL, **CONVENTIONS[name][1])

    @pytest.fixture
    def ours(self, kl, tmp_path):
        kl.save_pretrained(tmp_path)
        return load_autoencoder(str(tmp_path))

    @torch.no_grad()
    def test_decoding(self, name, kl, ours):
        z = randn(2, 4, 8, 8)
        expected = stock(CONVENTIONS[name][0], kl, z) * 2 - 1
        for vae in (kl, ours, VariationalAutoencoder.from_autoencoder_kl(kl)):
            torch.testing.assert_close(latents.decode(vae, z).clamp(-1, 1), expected, atol=1e-5, rtol=0)
        assert ours.decode(z).sample.equal(latents.decode(ours, z))

    @torch.no_grad()
    def test_encoding_is_its_inverse(self, name, kl, ours):
        images = randn(2, 3, 16, 16).clamp(-1, 1)
        raw = kl.encode(images).latent_dist
        mean, std = latents.encode(kl, images)
        reference = stock(CONVENTIONS[name][0], kl, mean) * 2 - 1
        torch.testing.assert_close(reference, kl.decode(raw.mean).sample.clamp(-1, 1), atol=1e-5, rtol=0)
        difference = latents.encode(kl, images * 0.5)[0] - mean  # one scale for mean and deviation
        raw_difference = kl.encode(images * 0.5).latent_dist.mean - raw.mean
        torch.testing.assert_close(difference, raw_difference * std / raw.std, atol=1e-4, rtol=1e-4)
        for value, other in zip(latents.encode(ours, images), (mean, std), strict=True):
            torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_pipelines(self, name, kl, ours):
        """A denoiser that answers z draws what the stock decoding makes of z."""
        z = randn(1, 4, 8, 8)
        unet = tiny_unet(in_channels=4, out_channels=4)
        unet.forward = lambda *args, **options: (z,)
        scheduler = GuidedDDIMScheduler(prediction_type="sample", clip_sample=False)
        expected = stock(CONVENTIONS[name][0], kl, z)
        options = {"num_inference_steps": 1, "output_type": "pt"}
        for vae in (kl, ours):
            text = quiet(TextToImagePipeline(**tiny_components(vae=vae, unet=unet, scheduler=scheduler)))
            image = text("a", guidance_scale=1.0, **options).images
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
        theirs = StableDiffusionPipeline(
            **tiny_components(vae=ours, unet=unet, scheduler=scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        image = quiet(theirs)("a", guidance_scale=1.0, **options).images
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


OTHERS = {
    AsymmetricAutoencoderKL: {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "down_block_out_channels": (4, 8),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "up_block_out_channels": (4, 8),
        "norm_num_groups": 4,
    },
    AutoencoderDC: {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_out_channels": (4, 8),
        "decoder_block_out_channels": (4, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
        "scaling_factor": 0.41407,
    },
    AutoencoderTiny: {
        "encoder_block_out_channels": (4, 4),
        "decoder_block_out_channels": (4, 4),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    VQModel: {key: value for key, value in KL.items() if key != "sample_size"},
}


DRAWING = {
    "encoder_block_out_channels": (4, 8),
    "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
    "encoder_norm_num_groups": 4,
    "encoder_layers_per_block": 1,
    "decoder_block_out_channels": (32, 32),
    "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "decoder_layers_per_block": 1,
    "decoder_num_train_timesteps": 1024,
}


@pytest.mark.parametrize("cls", OTHERS)
@torch.no_grad()
def test_other_autoencoders_of_images(cls, tmp_path):
    """Trained on and drawn from as StableDiffusionPipeline would, from a folder too."""
    seeded(cls, **OTHERS[cls]).save_pretrained(tmp_path)
    vae = load_autoencoder(str(tmp_path))
    assert type(vae) is cls
    images = randn(2, 3, 16, 16).clamp(-1, 1)
    z, deviation = latents.encode(vae, images)
    assert z.shape == deviation.shape == (2, *latents.latent_shape(vae, 16, 16)) == (2, 4, 8, 8)
    encoded = vae.encode(images)[0]
    encoded = encoded if isinstance(encoded, torch.Tensor) else encoded.mean
    torch.testing.assert_close(z, encoded * vae.config.scaling_factor)
    expected = vae.decode(encoded).sample
    torch.testing.assert_close(latents.decode(vae, z), expected, atol=1e-5, rtol=1e-5)
    network = tiny_image_unet(4)
    network.forward = lambda *args, **options: (z,)
    pipeline = ImagePipeline(network, GuidedDDIMScheduler(prediction_type="sample", clip_sample=False), vae)
    image = quiet(pipeline)(2, num_inference_steps=1, output_type="pt").images
    torch.testing.assert_close(image, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


class TestRefused:
    def test_an_autoencoder_of_video(self, tmp_path):
        wan = seeded(
            AutoencoderKLWan,
            base_dim=4,
            z_dim=2,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
        )
        wan.save_pretrained(tmp_path)
        for refuse in (
            lambda: load_autoencoder(str(tmp_path)),
            lambda: ImagePipeline(tiny_unet(), GuidedDDIMScheduler(), wan),
            lambda: TextToImagePipeline(**tiny_components(vae=wan)),
        ):
            with pytest.raises(ValueError, match="of class AutoencoderKLWan.*allowed: .*AutoencoderKL,"):
                refuse()

    @pytest.mark.parametrize(
        ("given", "word"),
        [
            ({"scaling_factor": 0.0}, "scaling_factor is 0.0"),
            ({"shift_factor": float("nan")}, "shift_factor is nan"),
            ({"shift_factor": 0.1, **STATISTICS}, "shift_factor is 0.1; allowed: 0 beside latents_mean"),
            ({"scaling_factor": 0.5, "latents_std": [1.0]}, "latents_std is .*allowed: 4 finite"),
        ],
    )
    def test_a_scale_that_is_none(self, given, word):
        with pytest.raises(ValueError, match=word):
            VariationalAutoencoder(**KL, **given)

    def test_vae_pipeline_of_another_class(self):
        with pytest.raises(ValueError, match="vae is a AutoencoderKL; .*from_autoencoder_kl"):
            VAEPipeline(seeded(AutoencoderKL, **KL))


class TestInParts:
    """A decoder sees a few images at a time, and draws what it draws of all."""

    @pytest.mark.parametrize("sliced", [False, True])
    @pytest.mark.parametrize("cls", [AutoencoderKL, VariationalAutoencoder])
    @torch.no_grad()
    def test_the_same_images(self, cls, sliced, monkeypatch):
        vae, z = seeded(cls, **KL).double(), randn(5, 4, 8, 8)
        if sliced:
            vae.enable_slicing()
        whole, sizes = latents.decode(vae, z), []
        vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 2 * 16 * 16 + 1)
        torch.testing.assert_close(latents.decode(vae, z), whole, rtol=0, atol=1e-12)
        assert sizes == ([1] * 5 if sliced else [2, 2, 1])
        with torch.enable_grad():
            assert latents.decode(vae, z.requires_grad_()).requires_grad and sum(sizes) == 10

    def test_a_vector_is_of_a_whole_image(self, monkeypatch):
        vae = seeded(VariationalAutoencoder, **KL, latent="vector")
        z, sizes = randn(3, 4, 1, 1), []
        vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 16 * 16)
        with torch.no_grad():
            latents.decode(vae, z)
        assert sizes == [1, 1, 1]

    @torch.no_grad()
    def test_a_decoder_that_draws_keeps_its_generators(self, monkeypatch):
        vae, z = seeded(ConsistencyDecoderVAE, **DRAWING), randn(3, 4, 8, 8)

        def generators():
            return [torch.Generator().manual_seed(seed) for seed in range(3)]

        whole = latents.decode(vae, z, generators()), latents.decode(vae, z, generators()[0])
        monkeypatch.setattr(latents, "PIXELS_AT_ONCE", 1)
        torch.testing.assert_close(latents.decode(vae, z, generators()), whole[0], rtol=0, atol=1e-5)
        assert torch.equal(latents.decode(vae, z, generators()[0]), whole[1])  # one for all: all at once


@pytest.mark.parametrize("upcast", [True, False])
@torch.no_grad()
def test_force_upcast(upcast):
    """Activations beyond float16's range are finite where the configuration asks for float32."""
    vae = seeded(AutoencoderKL, **KL, force_upcast=upcast)
    vae.decoder.conv_in.weight *= 1e5
    vae.decoder.conv_in.bias *= 1e5
    z = randn(1, 4, 8, 8)
    full = latents.decode(vae, z)
    if upcast:
        torch.testing.assert_close(latents.decode(vae.half(), z).float(), full, atol=0.02, rtol=0.02)
    else:
        with pytest.raises(NonFiniteError, match="decoded picture of AutoencoderKL in float16"):
            latents.decode(vae.half(), z)
    assert vae.dtype == torch.float16
