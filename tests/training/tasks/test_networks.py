"""Any network: tiny runs of every class, whose folders draw the same in diffusers' pipeline and here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import training_scripts
import yaml
from diffusers import DiffusionPipeline
from tiny_data import captioned, classed
from torch import Tensor
from training_scripts import BRIEF, TEXT_MODEL, load, records

from guided_diffusers import Condition, ModelDenoiser, sampling_loop
from guided_diffusers.guidance import ClassifierFreeGuidance
from guided_diffusers.schedulers import prediction_type_of
from guided_diffusers.stock import guide, prompt_condition
from guided_diffusers.stock.prompted import PROMPTED

FLOW = {"scheduler": "FlowMatchEulerDiscreteScheduler", "scheduler_arguments": {"shift": 2.0}}
SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 1}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
CROSS = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
GAMMA, STEPS, LENGTH = 3.0, 3, 12


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
    ),
    "SanaTransformer2DModel": Case(arguments={**HEADS, **CROSS}, slow=True),
    "FluxTransformer2DModel": Case(arguments={**HEADS, "num_single_layers": 1, "axes_dims_rope": [2, 2, 4]}),
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


def loaded(run: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(run / "final")
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
    stock, *others = drawn_three_ways(pipeline, side)
    assert not torch.allclose(stock[0], stock[1])
    for each in others:
        torch.testing.assert_close(each, stock, rtol=1e-5, atol=1e-5)


def test_frozen_text_encoders_say_the_same_as_those_that_are_asked_at_every_step(
    images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Two CLIPs and a T5, from a pipeline's folder."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    given = ("SD3Transformer2DModel", tmp_path / "first", images, tiny_folder / "vae", 16)
    first = by_text(*given)
    script = load("train_text_to_image")
    path = given[1] / "config.yaml"
    words = ["--config", path, "--text.pretrained", first / "final", "--output_dir", tmp_path / "second"]
    joint, frozen = (
        script.make_task(training_scripts.read(script, *words, "--text.encoder", each), torch.device("cpu"))
        for each in ("joint", "frozen")
    )
    assert [*joint.modules] == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
    assert [*frozen.modules] == ["transformer"]
    told = [
        each.condition.inputs(each.condition.rows([0, 1, 2], [3, 4, 5], seed=0)) for each in (joint, frozen)
    ]
    assert told[0]["encoder_hidden_states"].shape == (3, 2 * LENGTH, 32)
    assert told[0]["pooled_projections"].shape == (3, 32)
    torch.testing.assert_close(told[0], told[1], rtol=1e-5, atol=1e-6)


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
