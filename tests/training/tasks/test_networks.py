"""Any network: tiny runs of every class, whose folders draw the same in diffusers' pipeline and here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import training_scripts
import yaml
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.embeddings import LabelEmbedding
from own_network import OwnDenoiser
from PIL import Image
from tiny_data import captioned, classed
from torch import Tensor
from training_scripts import BRIEF, TEXT_MODEL, assert_goes_on_to_the_same_bits, load, records
from typer.testing import CliRunner

from guided_diffusers import (
    Condition,
    GuidedDDPMScheduler,
    ImagePipeline,
    ModelDenoiser,
    TextToImagePipeline,
    sampling_loop,
)
from guided_diffusers.cli.app import app
from guided_diffusers.cli.drawing import load_pipeline, prompt_arguments
from guided_diffusers.core.networks import Network
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.prompts import Prompts
from guided_diffusers.evaluation.sweep import PipelineSampler, Point
from guided_diffusers.guidance import ClassifierFreeGuidance
from guided_diffusers.schedulers import prediction_type_of
from guided_diffusers.stock import guide, prompt_condition
from guided_diffusers.stock.prompted import PROMPTED
from guided_diffusers.training.tasks.network import ARGUMENTS, keep_all_labels, make_network, sample_sizes
from guided_diffusers.training.tasks.stock_text import check_draws

FLOW = {"scheduler": "FlowMatchEulerDiscreteScheduler", "scheduler_arguments": {"shift": 2.0}}
SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 1}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
CROSS = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
TEXT_PART = {"model": TEXT_MODEL}
GAMMA, STEPS, LENGTH = 3.0, 3, 12
DRAWS = {"generator": [torch.Generator()], "guidance": ClassifierFreeGuidance(GAMMA)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny run: the arguments of its network, its scheduler, and how its pipeline is called."""

    arguments: dict[str, Any]
    config: dict[str, Any] = field(default_factory=lambda: FLOW)
    slow: bool = False


TEXT = {
    "SD3Transformer2DModel": Case(arguments={**HEADS, "pos_embed_max_size": 8}),
    "PixArtTransformer2DModel": Case(
        arguments=HEADS,
        config={"scheduler": "DPMSolverMultistepScheduler", "scheduler_arguments": SOLVER},
        slow=True,
    ),
    "SanaTransformer2DModel": Case(arguments={**HEADS, **CROSS}, slow=True),
    "FluxTransformer2DModel": Case(
        arguments={**HEADS, "num_single_layers": 1, "axes_dims_rope": [2, 2, 4]}, slow=True
    ),
}


def deep_compression(folder: Path) -> Path:
    """A tiny AutoencoderDC, whose latents are 2 channels of an eighth of the side."""
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8,) * 4, "block_types": "ResBlock", "layers_per_block": (1,) * 4}
    given = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in blocks.items()}
    given |= {f"{part}_qkv_multiscales": ((),) * 4 for part in ("encoder", "decoder")}
    diffusers.AutoencoderDC(in_channels=1, latent_channels=2, **given).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("pictures"), ["a dark square", "a bright square"] * 10)


def configured(folder: Path, **config: Any) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def trained(script: str, folder: Path, *words: Any, **config: Any) -> Path:
    """The folder of a run that has ended."""
    training = {**BRIEF, "output_dir": str(folder / "run"), "num_images": 240, "log_every_images": 80}
    training |= {"validate_every_images": 240, "checkpoint_every_images": 0, "learning_rate": 3e-3}
    path = configured(folder, training={**training, **config.pop("training", {})}, **config)
    training_scripts.train(load(script), "--config", path, *words)
    return folder / "run"


def remade(run: Path, script: str, *words: Any) -> Any:
    """The task of a run as it was before its first step, or with other words of its command line."""
    module, path = load(script), run.parent / "config.yaml"
    given = ["--config", path, "--output_dir", run.parent / "anew", *words]
    return module.make_task(training_scripts.read(module, *given), torch.device("cpu"))


def loaded(run: Path, **parts: Any) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(run / "final", **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def learns(run: Path) -> bool:
    """Whether the mean loss of its last 80 images is below that of its first."""
    losses = [each["denoiser"] for each in records(run) if "denoiser" in each]
    return losses[-1] < losses[0]


def by_text(name: str, folder: Path, images: Path, vae: Path, side: int, **text: Any) -> Path:
    """A run of a transformer by text."""
    data = {"path": str(images), "resolution": side, "channels": 1, "cache_dir": str(folder / "cache")}
    return trained(
        "train_text_to_image",
        folder,
        data=data,
        autoencoder=str(vae),
        text={"context_length": LENGTH, "sequence_length": LENGTH, "model": TEXT_MODEL, **text},
        denoiser={"class": name, "arguments": TEXT[name].arguments},
        denoising={"levels": "logit_normal", "weighting": "uniform"},
        drawing={"prompts": ["a dark square"], "images_per_prompt": 2, "num_inference_steps": 2},
        **TEXT[name].config,
    )


def drawn_three_ways(pipeline: DiffusionPipeline, side: int) -> list[Tensor]:
    """Latents of two prompts from one noise: by the stock pipeline, under `guide`, by `sampling_loop`."""
    name, prompts = type(pipeline.transformer).__name__, ["a dark square", "a bright square"]
    row, flux = PROMPTED[name], name.startswith("Flux")
    size = side // pipeline.vae_scale_factor
    noise = torch.randn(2, 2, size, size, generator=torch.Generator().manual_seed(1))

    def packed(latents: Tensor) -> Tensor:
        return diffusers.FluxPipeline._pack_latents(latents, 2, 2, size, size) if flux else latents

    call = {"prompt": prompts, "negative_prompt": ["", ""], "latents": packed(noise), row.scale: GAMMA}
    call |= {"num_inference_steps": STEPS, "max_sequence_length": LENGTH, "height": side, "width": side}
    call |= {"output_type": "latent", **row.call}
    stock = pipeline(**call)[0]
    with guide(pipeline, ClassifierFreeGuidance(GAMMA)):
        guided = pipeline(**call)[0]
    denoiser = ModelDenoiser(pipeline.transformer, prediction_type_of(pipeline.scheduler))
    ours = sampling_loop(
        ClassifierFreeGuidance(GAMMA)(denoiser),
        pipeline.scheduler,
        noise,
        prompt_condition(pipeline, prompts, length=LENGTH),
        STEPS,
        sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist() if flux else None,
    )
    return [stock, guided, packed(ours)]


def generated(run: Path, words: list[str], *options: Any) -> list[Image.Image]:
    """What `generate` draws with the folder of a run, without options by the guidance that it keeps."""
    output = run.parent / "outputs"
    given = ["generate", *words, "--checkpoint", str(run / "final"), "--output", str(output), "--steps", "3"]
    result = CliRunner().invoke(app, [*given, "--no-grid", "--json", *map(str, options)])
    assert result.exit_code == 0, result.output
    return [Image.open(each["path"]) for each in json.loads(result.stdout)["images"]]


def assert_same_pictures(first: list[Image.Image], second: list[Image.Image]) -> None:
    pixels = [
        np.stack([np.asarray(each.convert("L"), dtype=int) for each in some]) for some in (first, second)
    ]
    assert pixels[0].std() > 0 and abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=[pytest.mark.slow] * c.slow) for n, c in TEXT.items())]
)
def test_a_run_by_text_draws_the_same_in_its_stock_pipeline_and_here(
    name: str, images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    deep = name.startswith("Sana")
    vae, side = (deep_compression(tmp_path / "vae"), 64) if deep else (tiny_folder / "vae", 16)
    run = by_text(name, tmp_path, images, vae, side)
    assert learns(run) and (run / "validation" / "000000000240.png").is_file()
    pipeline = loaded(run)
    assert type(pipeline) is PROMPTED[name].cls
    new = remade(run, "train_text_to_image").modules
    for part in PROMPTED[name].encoders:  # they are trained along
        first, last = new[part].state_dict(), getattr(pipeline, part).state_dict()
        assert any(not torch.equal(first[key], last[key]) for key in first)
    stock, *others = drawn_three_ways(pipeline, side)
    assert not torch.allclose(stock[0], stock[1])
    for each in others:
        torch.testing.assert_close(each, stock, rtol=1e-5, atol=1e-5)
    row, prompts = PROMPTED[name], ["a dark square", "a bright square"]
    call = {"prompt": prompts, "negative_prompt": ["", ""], row.scale: 2.0, "max_sequence_length": LENGTH}
    call |= {"num_inference_steps": 3, "generator": [generator_for(0, 0) for _ in prompts], **row.call}
    images = pipeline(**call, height=side, width=side).images  # FluxPipeline's own size is another
    assert_same_pictures(generated(run, prompts), images)
    sampler = PipelineSampler(load_pipeline(str(run / "final"), prompted=False))  # of `evaluate` and `sweep`
    own = sampler.pipeline.config.default_guidance
    point = Point(arm="own", guidance=own, scheduler="own", steps=3, images=1, seed=0)
    (measured,) = sampler.sample(point, Prompts(texts=prompts[:1]), [0])
    assert_same_pictures([Image.fromarray(measured[0].numpy())], images[:1])
    assert sampler.compute(point, Prompts(texts=prompts)).forwards["transformer"] == 6


@pytest.mark.slow
def test_stable_diffusion_3_without_its_t5_is_trained_and_drawn(
    images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Its two CLIPs speak alone; `text_encoder_3` is None before and after."""
    whole = loaded(by_text("SD3Transformer2DModel", tmp_path, images, tiny_folder / "vae", 16))
    parts = {**whole.components, "text_encoder_3": None, "tokenizer_3": None}
    type(whole)(**parts).save_pretrained(tmp_path / "two")
    (tmp_path / "next").mkdir()
    text = {"pretrained": str(tmp_path / "two"), "encoder": "joint"}
    run = by_text("SD3Transformer2DModel", tmp_path / "next", images, tiny_folder / "vae", 16, **text)
    pipeline = loaded(run, text_encoder_3=None, tokenizer_3=None)  # diffusers wants to be told
    assert learns(run) and pipeline.text_encoder_3 is None and pipeline.tokenizer_3 is None
    stock, *others = drawn_three_ways(pipeline, 16)
    for each in others:
        torch.testing.assert_close(each, stock, rtol=1e-5, atol=1e-5)
    assert len(generated(run, ["a dark square"])) == 1


def test_frozen_text_encoders_say_the_same_as_those_that_are_asked_at_every_step(
    images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Two CLIPs and a T5, from a pipeline's folder."""
    first = by_text("SD3Transformer2DModel", tmp_path, images, tiny_folder / "vae", 16)
    words = ["--text.pretrained", first / "final", "--text.encoder"]
    joint, frozen = (remade(first, "train_text_to_image", *words, each) for each in ("joint", "frozen"))
    assert [*joint.modules] == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
    assert [*frozen.modules] == ["transformer"]
    told = [
        each.condition.inputs(each.condition.rows([0, 1, 2], [3, 4, 5], seed=0)) for each in (joint, frozen)
    ]
    assert told[0]["encoder_hidden_states"].shape == (3, 2 * LENGTH, 32)
    assert told[0]["pooled_projections"].shape == (3, 32)
    torch.testing.assert_close(told[0], told[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_transformer_goes_on_to_the_same_bits(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Its text encoders are trained along, a T5 with dropout."""
    first = by_text("SD3Transformer2DModel", tmp_path, images, tiny_folder / "vae", 16)

    def run(name: str, *words: Any) -> Path:
        given = ["--config", first.parent / "config.yaml", "--output_dir", tmp_path / name, *words]
        training_scripts.train(load("train_text_to_image"), *given, "--validate_every_images", 0)
        return tmp_path / name

    assert_goes_on_to_the_same_bits(run, 32, "--num_images", 64, "--checkpoint_every_images", 32)


UNET = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}


@pytest.mark.slow
def test_a_unet_by_its_class_draws_the_same_in_stable_diffusion_and_here(
    images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    run = trained(
        "train_text_to_image",
        tmp_path,
        data={"path": str(images), "resolution": 16, "channels": 1, "cache_dir": str(tmp_path / "cache")},
        autoencoder=str(tiny_folder / "vae"),
        text=TEXT_PART,
        denoiser={
            "class": "UNet2DConditionModel",
            "arguments": {**UNET, **BLOCKS, "attention_head_dim": 2, "mid_block_type": None},
        },
        scheduler="DPMSolverMultistepScheduler",
        scheduler_arguments=SOLVER,
        drawing={"prompts": ["a dark square"], "images_per_prompt": 2, "num_inference_steps": 2},
    )
    assert learns(run)
    noise = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"prompt": ["a dark square", "a bright square"], "guidance_scale": GAMMA, "latents": noise}
    drawn = []
    for kind in (diffusers.StableDiffusionPipeline, TextToImagePipeline):
        pipeline = kind.from_pretrained(run / "final")
        pipeline.set_progress_bar_config(disable=True)
        drawn.append(pipeline(**call, num_inference_steps=STEPS, output_type="latent").images)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_unet_of_pixels_by_its_class_draws_the_same_in_diffusers_and_here(tmp_path: Path) -> None:
    images = classed(tmp_path / "pictures", ["cat", "dog"] * 6)
    data = {"path": str(images), "caption_column": None, "resolution": 16, "channels": 1}
    run = trained(
        "train_unconditional",
        tmp_path,
        data={**data, "cache_dir": str(tmp_path / "cache")},
        denoiser={
            "class": "UNet2DModel",
            "arguments": {**UNET, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
            | {"add_attention": False},
        },
        scheduler_class="FlowMatchEulerDiscreteScheduler",
        scheduler={"shift": 2.0},
        denoising={"levels_arguments": {"shift": 2.0}},
        validation={"images": 4, "num_inference_steps": 2},
    )
    assert learns(run)
    drawn = []
    for kind in (diffusers.DDPMPipeline, ImagePipeline):
        pipeline = kind.from_pretrained(run / "final")
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        given = {"generator": generators, "num_inference_steps": STEPS, "output_type": "np"}
        drawn.append(torch.from_numpy(pipeline(2, **given).images))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)


def test_a_dit_by_class_draws_the_same_in_its_stock_pipeline_and_here(
    tiny_folder: Path, tmp_path: Path
) -> None:
    images = classed(tmp_path / "pictures", ["cat", "dog"] * 6)
    run = trained(
        "train_unconditional",
        tmp_path,
        data={"path": str(images), "caption_column": None, "resolution": 16, "channels": 1}
        | {"cache_dir": str(tmp_path / "cache")},
        label_column="label",
        autoencoder=str(tiny_folder / "vae"),
        denoiser={"class": "DiTTransformer2DModel", "arguments": {**HEADS, "norm_num_groups": 4}},
        scheduler_class="DPMSolverMultistepScheduler",
        scheduler=SOLVER,
        objective={"class_dropout": 0.2},
        validation={"images": 4, "num_inference_steps": 2, "guidance_scale": 2.0},
    )
    assert learns(run) and (run / "validation" / "000000000240.png").is_file()
    pipeline = loaded(run)
    assert type(pipeline) is diffusers.DiTPipeline and pipeline.labels == {"cat": 0, "dog": 1}
    decoded = []
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda latents: decoded.append(latents) or decode(latents)
    call = {"class_labels": [0, 1], "num_inference_steps": STEPS, "guidance_scale": GAMMA}
    pipeline(**call, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    with guide(pipeline, ClassifierFreeGuidance(GAMMA)):
        pipeline(**call, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    noise = [torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    told = Condition({"class_labels": torch.tensor([0, 1])}, {"class_labels": torch.tensor([1000, 1000])})
    denoiser = ClassifierFreeGuidance(GAMMA)(
        ModelDenoiser(pipeline.transformer, prediction_type_of(pipeline.scheduler))
    )
    ours = sampling_loop(denoiser, pipeline.scheduler, torch.cat(noise), told, STEPS)
    torch.testing.assert_close(decoded[1], decoded[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, decoded[0], rtol=1e-5, atol=1e-5)
    call |= {
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "generator": [generator_for(0, 0) for _ in "01"],
    }
    images = pipeline(**call).images
    assert_same_pictures(generated(run, ["cat", "1"]), images)
    assert_same_pictures(generated(run, ["cat"], "--guidance-scale", 2.0), images[:1])
    refused = {"bird": "a class: its number, or one of cat, dog", "2": "a class from 0 and below 2"}
    for word, message in refused.items():
        with pytest.raises(ValueError, match=message):
            load_pipeline(str(run / "final"))(class_labels=[int(word) if word.isdecimal() else word], **DRAWS)
    with pytest.raises(ValueError, match="a DiTPipeline takes no negative prompt"):
        prompt_arguments(load_pipeline(str(run / "final")), ["cat"], "dog")


@pytest.mark.parametrize(
    ("script", "path", "more", "kind"),
    [
        pytest.param(
            "train_unconditional", "own_network.own_denoiser", {}, ImagePipeline, marks=pytest.mark.slow
        ),
        ("train_unconditional", "own_network.OwnDenoiser", {"label_column": "label"}, ImagePipeline),
        (
            "train_text_to_image",
            "own_network.OwnDenoiser",
            {"text": {"model": TEXT_MODEL}},
            TextToImagePipeline,
        ),
    ],
)
def test_a_network_of_ones_own_is_told_and_loaded_like_a_unet(
    script: str, path: str, more: dict, kind: type, images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    text = "text" in more
    pictures = images if text else classed(tmp_path / "pictures", ["cat", "dog"] * 6)
    data = {"path": str(pictures), "resolution": 16, "channels": 1, "cache_dir": str(tmp_path / "cache")}
    more |= {"autoencoder": str(tiny_folder / "vae")} if text else {}
    run = trained(
        script,
        tmp_path,
        data=data | ({} if text else {"caption_column": None}),
        denoiser={"class": path, "arguments": {"width": 12}},
        **{"drawing": {"prompts": ["a square"], "num_inference_steps": 2}} if text else {},
        **{} if text else {"validation": {"images": 4, "num_inference_steps": 2}},
        **more,
    )
    network = OwnDenoiser.from_pretrained(run / "final" / "unet")
    pipeline = kind.from_pretrained(run / "final", unet=network)
    pipeline.set_progress_bar_config(disable=True)
    assert learns(run) and type(pipeline.unet).__name__ == "OwnDenoiser"
    assert {"width": 12, "in_channels": 2 if text else 1}.items() <= dict(pipeline.unet.config).items()
    call = {"prompt": "a square"} if text else {"class_labels": 1} if "label_column" in more else {}
    assert pipeline(**call, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 1)


REFUSED = {
    "SD3Transformer2D": "denoiser.class is 'SD3Transformer2D'; allowed: UNet2DConditionModel, Flux",
    "AuraFlowTransformer2DModel": "denoiser.class is 'AuraFlowTransformer2DModel'; allowed: UNet2DCond",
    "nowhere.Denoiser": "denoiser.class is 'nowhere.Denoiser', which does not import",
    "own_network.nothing": "denoiser.class is 'own_network.nothing'; allowed: UNet2DConditionModel",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_is_none_is_named(name: str, arguments: Any, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        training_scripts.read(load("train_text_to_image"), *arguments(tmp_path), "--denoiser.class", name)
    assert REFUSED[name] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--denoiser.arguments.layers 2", "unknown key 'denoiser.arguments.layers': did you mean"),
        ("--denoiser.kind x", "unknown key 'denoiser.kind': did you mean 'denoiser.class'?"),
    ],
)
def test_arguments_that_a_class_does_not_take_are_named(
    words: str, message: str, arguments: Any, tmp_path: Path, capsys: Any
) -> None:
    given = arguments(tmp_path, "--denoiser.class", "SD3Transformer2DModel", *words.split())
    with pytest.raises(SystemExit):
        training_scripts.read(load("train_text_to_image"), *given)
    assert message in capsys.readouterr().err


SIZES = {**sample_sizes(8, 2, learned=False), "text": 32, "pooled": 32}


@pytest.mark.parametrize(
    ("unet", "given", "message"),
    [
        ({"layers_per_block": 1}, {}, "unet is .*; allowed: nothing beside denoiser.class"),
        (
            {},
            {"in_channels": 3},
            "arguments.in_channels is 3; allowed: 2, the channels of the sample",
        ),
        ({}, {"patch_size": 3}, "patch_size is 3; allowed: a divisor of 8, the side of the sample"),
        ({}, {"sample_size": 16}, "sample_size is 16; allowed: 8, the side of the sample: leave it out"),
        (
            {},
            {"joint_attention_dim": 4},
            "joint_attention_dim is 4; allowed: 32, the width of the text",
        ),
        (
            {},
            {"caption_projection_dim": 8},
            "caption_projection_dim is 8; allowed: 16, num_attention_heads",
        ),
    ],
)
def test_sizes_that_other_parts_fix_are_checked(unet: dict, given: dict, message: str) -> None:
    denoiser = {"class": "SD3Transformer2DModel", "arguments": {**HEADS, **given}}
    with pytest.raises(ValueError, match=message):
        make_network(denoiser, unet, diffusers.UNet2DConditionModel, SIZES)


def test_what_is_no_network_of_diffusers_is_refused() -> None:
    with pytest.raises(ValueError, match="what denoiser.class makes is .*; allowed: a ModelMixin"):
        make_network({"class": "torch.nn.Identity"}, {}, diffusers.UNet2DModel, SIZES)


@pytest.mark.parametrize("name", [*TEXT, "DiTTransformer2DModel"])
def test_a_new_transformer_begins_with_zero_and_learns_no_label_of_its_own(name: str) -> None:
    """And every argument that other parts fix is one of its class: a table row that is wrong fails here."""
    arguments = TEXT[name].arguments if name in TEXT else {**HEADS, "norm_num_groups": 4}
    network = make_network(
        {"class": name, "arguments": arguments}, {}, diffusers.UNet2DModel, {**SIZES, "classes": 3}
    )
    assert {*ARGUMENTS[name]} <= {*network.config}
    keep_all_labels(network)
    told = {"class_labels": torch.tensor([1, 1])}
    if name in TEXT:
        told = {"encoder_hidden_states": torch.randn(2, 3, 32)}
        told |= (
            {"pooled_projections": torch.randn(2, 32)} if "pooled_projections" in PROMPTED[name].told else {}
        )
    first = Network(network.train())(torch.randn(2, 2, 8, 8), torch.tensor([3.0, 5.0]), told)
    assert first.abs().max() == 0
    labels = [each for each in network.modules() if isinstance(each, LabelEmbedding)]
    assert len(labels) == (name not in TEXT) and all(each.dropout_prob == 0 for each in labels)


@pytest.mark.parametrize(
    ("name", "scheduler", "vae", "message"),
    [
        (
            "PixArtTransformer2DModel",
            FlowMatchEulerDiscreteScheduler(),
            None,
            "no scale_model_input",
        ),
        ("SD3Transformer2DModel", EulerDiscreteScheduler(), None, "noise StableDiffusion3Pipeline does not"),
        (
            "SD3Transformer2DModel",
            GuidedDDPMScheduler(variance_type="learned_range"),
            None,
            "'learned_range', which StableDiffusion3Pipeline does not read",
        ),
        (
            "SanaTransformer2DModel",
            FlowMatchEulerDiscreteScheduler(),
            torch.nn.Identity(),
            "autoencoder of SanaPipeline is .*; allowed: AutoencoderDC",
        ),
    ],
)
def test_what_a_stock_pipeline_cannot_draw_with_is_refused(
    name: str, scheduler: Any, vae: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_draws(PROMPTED[name], scheduler, vae)
