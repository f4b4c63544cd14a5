"""Parts that a configuration names: found in pipelines, and refused where they do not fit."""

from __future__ import annotations

import json

import pytest
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DConditionModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_autoencoder, tiny_components, tiny_tokenizer, tiny_unet
from tiny_classifier import tiny_classifier, tiny_image_unet
from tiny_clip import tiny_clip
from tiny_data import SLICE
from training_scripts import load, train

from guided_diffusers import (
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    ImagePipeline,
    TextToImagePipeline,
)
from guided_diffusers.hub.component import load_network
from guided_diffusers.store.checkpoints import component_source
from guided_diffusers.training.data.images import load_autoencoder

NETWORK = {"block_out_channels": "[8,8]", "layers_per_block": "1", "norm_num_groups": "4"}


def options(prefix, values):
    return [text for name, value in values.items() for text in (f"--{prefix}.{name}", value)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of tiny parts, by name; and a cache of data."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_autoencoder().save_pretrained(folder / "grey")
    tiny_autoencoder(in_channels=3, out_channels=3).save_pretrained(folder / "colour")
    tiny_unet(in_channels=4, out_channels=4).save_pretrained(folder / "unet-4")
    tiny_unet(cross_attention_dim=24).save_pretrained(folder / "unet-24")
    tiny_unet(sample_size=16).save_pretrained(folder / "unet-16")
    tiny_image_unet(3).save_pretrained(folder / "image-3")
    TextToImagePipeline(**tiny_components(), requires_safety_checker=False).save_pretrained(
        folder / "pipeline"
    )
    return folder


SCHEDULER = GuidedDDIMScheduler()
UNET = options("unet", NETWORK)
TEXT_UNET = [
    *UNET,
    *options("unet", {"down_block_types": "[DownBlock2D,CrossAttnDownBlock2D]"}),
    *options("unet", {"up_block_types": "[CrossAttnUpBlock2D,UpBlock2D]", "attention_head_dim": "2"}),
    *options("text.model", {"hidden_size": "16", "num_hidden_layers": "1", "num_attention_heads": "2"}),
]
IMAGE_UNET = [
    *UNET,
    *options("unet", {"down_block_types": "[DownBlock2D,DownBlock2D]"}),
    *options("unet", {"up_block_types": "[UpBlock2D,UpBlock2D]"}),
]
NETWORKS = {"text_to_image": TEXT_UNET, "unconditional": IMAGE_UNET}
COLOUR = ["--data.channels", "3"]
GREY_FOR_COLOUR = r"autoencoder .*grey is of images of 1 channels; data.channels is 3"
MISFITS = {
    "grey autoencoder": ("text_to_image", "--autoencoder grey", COLOUR, GREY_FOR_COLOUR),
    "grey, unconditional": ("unconditional", "--autoencoder grey", COLOUR, GREY_FOR_COLOUR),
    "grey, classifier": ("classifier", "--autoencoder grey --noise_aware true", COLOUR, GREY_FOR_COLOUR),
    "grey start": ("classifier", "--init_from_autoencoder grey", COLOUR, GREY_FOR_COLOUR),
    "grey, clip": ("clip", "--autoencoder grey --noise_aware true", COLOUR, GREY_FOR_COLOUR),
    "grey, autoencoder": ("autoencoder", "--pretrained grey", COLOUR, "in_channels.* takes 1 .*image has 3"),
    "colour for grey": ("text_to_image", "--autoencoder colour", [], "images of 3 channels; .* is 1"),
    "channels": (
        "text_to_image",
        "--autoencoder grey --unet_pretrained unet-4",
        [],
        "unet takes 4 .*latent has 2",
    ),
    "size": (
        "text_to_image",
        "--autoencoder grey --unet_pretrained unet-16",
        [],
        "sample_size 16x16 .*has 8x8",
    ),
    "width": (
        "text_to_image",
        "--autoencoder grey --unet_pretrained unet-24",
        [],
        "cross_attention_dim 24 and text_encoder hidden_size 16",
    ),
    "said wrong": (
        "text_to_image",
        "--autoencoder grey",
        ["--unet.in_channels", "3"],
        "unet takes 3 .*has 2",
    ),
    "pixels": ("unconditional", "--unet_pretrained image-3", [], "unet takes 3 channels and the image has 1"),
    "another class": (
        "unconditional",
        "--unet_pretrained unet-4",
        [],
        "of class UNet2DConditionModel; allowed: UNet2DModel",
    ),
    "no autoencoder": (
        "unconditional",
        "--autoencoder image-3",
        [],
        "of class UNet2DModel; allowed: an autoencoder",
    ),
    "classifier": (
        "classifier",
        "--noise_aware true",
        [*options("classifier", {**NETWORK, "in_channels": "4", "attention_head_dim": "4"})],
        "classifier takes 4 channels and the image has 1",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_refused_by_both_names(name, parts, tmp_path):
    kind, named, more, message = MISFITS[name]
    named = [str(parts / word) if (parts / word).exists() else word for word in named.split()]
    data = ["--data.path", str(SLICE), "--data.resolution", "16", "--data.cache_dir", str(tmp_path)]
    data += [] if more == COLOUR else ["--data.channels", "1"]
    run = ["--training.output_dir", str(tmp_path / "run"), "--training.num_images", "8"]
    with pytest.raises(ValueError, match=message):
        train(load(f"train_{kind}"), *data, *run, *named, *NETWORKS.get(kind, []), *more)
    assert not list(tmp_path.glob("latents-*"))


PIPELINES = {
    "channels": (
        lambda: TextToImagePipeline(**tiny_components(unet=tiny_unet(in_channels=4, out_channels=4))),
        "unet takes 4 .*vae has 2",
    ),
    "width": (
        lambda: TextToImagePipeline(**tiny_components(unet=tiny_unet(cross_attention_dim=24)))("a"),
        "dim 24 .*size 16",
    ),
    "weak": (
        lambda: TextToImagePipeline(**tiny_components(weak_unet=tiny_unet(cross_attention_dim=8))),
        "weak_unet has cross_attention_dim 8 and unet 16",
    ),
    "image": (
        lambda: ImagePipeline(tiny_image_unet(), SCHEDULER, tiny_autoencoder()),
        "unet takes 1 .*vae has 2",
    ),
    "classifier": (
        lambda: ClassifierGuidedPipeline(tiny_image_unet(), SCHEDULER, tiny_classifier(), tiny_autoencoder()),
        "unet takes 1 .*vae has 2",
    ),
    "clip": (
        lambda: ClassifierGuidedTextToImagePipeline(
            tiny_image_unet(), SCHEDULER, tiny_clip(), tiny_tokenizer(), tiny_autoencoder()
        ),
        "unet takes 1 .*vae has 2",
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_not_made_of_misfits(name):
    make, message = PIPELINES[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_that_was_replaced_is_told_at_the_call():
    text, image = TextToImagePipeline(**tiny_components()), ImagePipeline(tiny_image_unet(2), SCHEDULER, None)
    text.unet, image.vae = (
        tiny_unet(in_channels=4, out_channels=4),
        tiny_autoencoder(latent_channels=1, latents_mean=None, latents_std=None),
    )
    for call in (lambda: text("a"), lambda: image(1)):
        with pytest.raises(ValueError, match="unet takes . channels and the latent of vae has ."):
            call()


class TestNames:
    """A pipeline's name stands for its only component of a kind; on the Hub too: hub/test_round_trip.py."""

    def test_of_what_ships_and_of_folders(self, parts, monkeypatch):
        assert load_autoencoder("emoji-64-vae").config.in_channels == 3
        assert load_autoencoder("fashion-32").config == load_autoencoder("fashion-32/vae").config
        assert load_autoencoder(str(parts / "pipeline")).config.in_channels == 1
        monkeypatch.chdir(parts)
        assert component_source("pipeline", "vae") == "pipeline/vae"
        assert component_source("pipeline/vae", "vae") == "pipeline/vae"
        assert load_network(UNet2DConditionModel, "fashion-32", "unet").config.sample_size == 8

    def test_under_another_name(self, tmp_path):
        LDMPipeline(VQModel(norm_num_groups=1), tiny_image_unet(3), DDIMScheduler()).save_pretrained(tmp_path)
        assert type(load_autoencoder(str(tmp_path))) is VQModel

    @pytest.mark.parametrize(
        ("old", "new"), [("encoder.layers.0.weight", None), ("decoder", "module.decoder")]
    )
    def test_weights_that_are_not_its_own(self, old, new, tmp_path):
        """What is missing diffusers fills with random numbers."""
        blocks = {f"{part}_block_out_channels": (4, 4) for part in ("encoder", "decoder")}
        counts = {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
        AutoencoderTiny(**blocks, **counts).save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({k.replace(old, new or ""): v for k, v in weights.items() if new or k != old}, file)
        with pytest.raises(OSError, match="not whole: refused|not its weights: refused"):
            load_autoencoder(str(tmp_path))

    def test_none_and_several(self, parts, tmp_path):
        DDPMPipeline(tiny_image_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
        with pytest.raises(ValueError, match=r"has no vae; name one of: .*/unet \(UNet2DModel\)"):
            load_autoencoder(str(tmp_path / "ddpm"))
        index = {"one": ["diffusers", "VQModel"], "two": ["diffusers", "VQModel"], "unet": [None, None]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="has several vae; name one of: .*/one .*/two"):
            load_autoencoder(str(tmp_path))
