"""Folders as diffusers and people leave them: what stock pipelines load is loaded and draws the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from command_line import Run
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    VQModel,
)
from hostile import edit
from tiny import stable_diffusion_schedule, tiny_components
from tiny_classifier import tiny_image_unet
from tiny_pipelines import classifier_guided
from transformers import CLIPImageProcessor

from guided_diffusers import ImagePipeline, TextToImagePipeline, VAEPipeline, VariationalAutoencoder
from guided_diffusers.store.safety import check_component

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stock_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=2,
    )


def stable_diffusion(cls: type = StableDiffusionPipeline, **components: Any) -> Any:
    scheduler = stable_diffusion_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    parts = {"vae": stock_autoencoder(), "scheduler": scheduler, **NO_CHECKER, **components}
    return cls(**tiny_components(**parts))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stable-diffusion")
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A folder of StableDiffusionPipeline, the test's own."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def latents(pipeline: Any, **arguments: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    given = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 3.0, **arguments}
    return pipeline("a bag", generator=generator, **given).images


def same_as_stock(folder: Path) -> None:
    ours, theirs = (cls.from_pretrained(folder) for cls in (TextToImagePipeline, StableDiffusionPipeline))
    wanted = latents(theirs)
    assert wanted.std() > 0.1
    torch.testing.assert_close(latents(ours), wanted, rtol=0, atol=1e-4)


def scheduled(cls: type, **config: Any) -> Callable[[Path], None]:
    """The scheduler swapped as the documentation says, and saved."""

    def change(folder: Path) -> None:
        before = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        cls.from_config(before.config, **config).save_pretrained(folder / "scheduler")
        edit(folder / "model_index.json", scheduler=["diffusers", cls.__name__])

    return change


def config(path: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / path, **values)


def files(*names: str) -> Callable[[Path], None]:
    """Files of nonsense: whatever reads one fails."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"no weights")

    return change


def old_processor(folder: Path) -> None:
    CLIPImageProcessor(size=8).save_pretrained(folder / "feature_extractor")
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPFeatureExtractor"])


def index_of_another_variant(folder: Path) -> None:
    """The Hub's loader brings every JSON file of a component, and the shards of one variant only."""
    shard = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard}})
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(index)


def several(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


FOLDERS: dict[str, Callable[[Path], None]] = {
    "minus infinity, of DPM-Solver": scheduled(DPMSolverMultistepScheduler),
    "minus infinity, of another DPM-Solver": scheduled(DPMSolverSinglestepScheduler),
    "minus infinity that is not read, a thousand numbers, null, nested and foreign keys": several(
        scheduled(EulerDiscreteScheduler, trained_betas=np.linspace(1e-4, 2e-2, 1000)),
        config("scheduler/scheduler_config.json", lambda_min_clipped=-float("inf"), timestep_type=None),
        config("scheduler/scheduler_config.json", own={"a": [None, {"b": 1.5}]}, _use_default_values=["own"]),
        config("unet/config.json", optimization_step=10**6, decay=0.9999, _diffusers_version="0.10.0"),
    ),
    "files that nobody reads, and a class's old name": several(
        files("model.ckpt", "v1.safetensors", "config.json"),
        files("extra/pytorch_model.bin", "extra/config.json"),
        files("unet/old.safetensors", "unet/training.bin", "scheduler/optimizer.pt", "tokenizer/rng.pth"),
        files("unet/diffusion_pytorch_model.non_ema.safetensors"),
        index_of_another_variant,
        old_processor,
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_what_stable_diffusion_loads_is_loaded_and_draws_the_same(folder: Path, case: str) -> None:
    FOLDERS[case](folder)
    same_as_stock(folder)


def test_every_scheduler_of_diffusers_saves_a_configuration_that_is_read(tmp_path: Path) -> None:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    found = 0
    for name in names:
        try:
            getattr(diffusers, name)().save_pretrained(tmp_path / name)
        except (TypeError, ValueError, ImportError, AttributeError):
            continue  # abstract, or with arguments of its own
        check_component(tmp_path / name)
        found += 1
    assert found > 40


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (DDIMScheduler, {"beta_start": float("inf")}),
        (DPMSolverMultistepScheduler, {"beta_end": float("-inf")}),
        (DPMSolverMultistepScheduler, {"lambda_min_clipped": float("nan")}),
        (FlowMatchEulerDiscreteScheduler, {"shift": float("inf")}),
    ],
)
def test_infinities_that_make_no_schedule_are_refused(folder: Path, cls: type, values: dict) -> None:
    scheduled(cls)(folder)
    edit(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(OSError, match=r"scheduler.*(NaN|nan|finite|from 0 to 1)"):
        TextToImagePipeline.from_pretrained(folder)


def sdxl(folder: Path) -> None:
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    edit(
        folder / "model_index.json",
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )


def with_controlnet(folder: Path) -> None:
    parts = StableDiffusionPipeline.from_pretrained(folder).components
    controlnet = ControlNetModel.from_unet(parts["unet"])
    parts |= {"controlnet": controlnet, "requires_safety_checker": False}
    StableDiffusionControlNetPipeline(**parts).save_pretrained(folder)


def ldm(folder: Path) -> None:
    vqvae = VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=8)
    shutil.rmtree(folder)
    LDMPipeline(vqvae=vqvae, unet=tiny_image_unet(), scheduler=DDIMScheduler()).save_pretrained(folder)


def transformer(folder: Path) -> None:
    edit(
        folder / "model_index.json",
        _class_name="PixArtSigmaPipeline",
        unet=[None, None],
        transformer=["diffusers", "PixArtTransformer2DModel"],
    )


def classifier(folder: Path) -> None:
    shutil.rmtree(folder)
    classifier_guided().save_pretrained(folder)


DROPPED: dict[str, tuple[Callable[[Path], None], type, str]] = {
    "a second text encoder": (sdxl, TextToImagePipeline, r"text_encoder_2 .*diffusers\.StableDiffusionXLP"),
    "a ControlNet": (with_controlnet, TextToImagePipeline, r"controlnet \(ControlNetModel\).*ControlNetPip"),
    "a vqvae": (ldm, ImagePipeline, r"vqvae \(VQModel\).*diffusers\.LDMPipeline"),
    "a transformer": (transformer, TextToImagePipeline, r"transformer .*diffusers\.PixArtSigmaPipeline"),
    "text": (lambda folder: None, ImagePipeline, r"text_encoder .*diffusers\.StableDiffusionPipeline"),
    "a component of ours": (classifier, ImagePipeline, r"classifier .*diffusers\.ClassifierGuidedPipeline"),
}


@pytest.mark.parametrize("case", DROPPED)
def test_a_component_without_a_place_is_refused_by_name(folder: Path, case: str) -> None:
    change, cls, words = DROPPED[case]
    change(folder)
    with pytest.raises(OSError, match=words) as refused:
        cls.from_pretrained(folder)
    assert "\n" not in str(refused.value)


def test_a_component_is_left_out_where_one_says_so(folder: Path) -> None:
    plain = latents(StableDiffusionPipeline.from_pretrained(folder))
    with_controlnet(folder)
    torch.testing.assert_close(
        latents(TextToImagePipeline.from_pretrained(folder, controlnet=None)), plain, rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="controlnet is given"):
        controlnet = ControlNetModel.from_pretrained(folder, subfolder="controlnet")
        TextToImagePipeline.from_pretrained(folder, controlnet=controlnet)


def test_components_that_are_none_pass(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder_2=[None, None], image_encoder=[None, None])
    same_as_stock(folder)


def test_an_autoencoder_is_taken_from_any_checkpoint(tiny_folder: Path) -> None:
    vae = VAEPipeline.from_pretrained(tiny_folder).vae
    alone = VariationalAutoencoder.from_pretrained(tiny_folder / "vae")
    assert torch.equal(vae.quant_conv.weight, alone.quant_conv.weight)


def test_the_command_line_says_what_else_draws(folder: Path, run: Run) -> None:
    sdxl(folder)
    code, _, errors = run("generate", "a bag", "--steps", 2, "--checkpoint", folder)
    assert code != 0 and "diffusers.StableDiffusionXLPipeline" in errors
