"""On a GPU: every pipeline draws what it draws on a CPU, also in half precision and offloaded; scripts train.

Skipped where there is none. Everything else of the tests runs on either.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import diffusers
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_unet
from tiny_classifier import tiny_image_unet
from tiny_pipelines import PIPELINES, PROMPTS, STEPS, autoencoder, drawn, text_to_image
from torch.utils.flop_counter import FlopCounterMode
from trained_scripts import CASES, command, records

from guided_diffusers import (
    GuidedDDPMScheduler,
    TextToImagePipeline,
    pretrained,
)
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFreeGuidance,
    ProjectedGuidance,
    RescaledGuidance,
)
from guided_diffusers.likelihood.bound import estimated_bound, with_variance
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import make_accelerator, make_optimizer, train

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

TOLERANCE = {"rtol": 0, "atol": 2e-3}  # convolutions of float32 run in TF32 on a GPU


@pytest.fixture(params=PIPELINES)
def case(request: pytest.FixtureRequest) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    build, positional, arguments = PIPELINES[request.param]
    return build(), positional, arguments


def test_every_pipeline_draws_what_it_draws_on_a_cpu(case):
    pipeline, positional, arguments = case
    expected = drawn(pipeline, *positional, **arguments)
    assert expected.std() > 0.01
    torch.testing.assert_close(drawn(pipeline.to("cuda"), *positional, **arguments), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_pipeline_draws_in_half_precision(case, dtype):
    pipeline, positional, arguments = case
    expected = drawn(pipeline, *positional, **arguments)
    half = drawn(pipeline.to("cuda", dtype), *positional, **arguments)
    assert half.isfinite().all() and (half - expected).abs().mean() < 0.05


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_every_pipeline_can_be_offloaded(case, way):
    pipeline, positional, arguments = case
    expected = drawn(pipeline, *positional, **arguments)
    getattr(pipeline, way)()
    for _ in range(2):  # the second call finds the modules as the first one left them
        torch.testing.assert_close(drawn(pipeline, *positional, **arguments), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "scheduler",
    [
        GuidedDDPMScheduler(clip_sample=False, variance_type="fixed_large"),
        diffusers.DDPMScheduler(clip_sample=False),
        diffusers.PNDMScheduler(skip_prk_steps=True),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.EulerDiscreteScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.HeunDiscreteScheduler(),
        diffusers.KDPM2DiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers(scheduler):
    pipeline = text_to_image(scheduler=scheduler)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": [3.0, 1.0]}
    expected = drawn(pipeline, PROMPTS, **arguments)
    torch.testing.assert_close(drawn(pipeline.to("cuda"), PROMPTS, **arguments), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "terms",
    [
        lambda pipe: ClassifierFreeGuidance(3.0, (0.5, 20.0)) + AutoGuidance(pipe.weak_denoiser, 1.5),
        lambda pipe: RescaledGuidance([3.0, 2.0]),
        lambda pipe: CFGPlusPlus(0.6),
        lambda pipe: CFGZeroStar(3.0),
        lambda pipe: ProjectedGuidance(3.0),
    ],
    ids=["autoguidance", "rescaled", "++", "zero star", "projected"],
)
def test_terms(terms):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline = text_to_image(weak_unet=tiny_unet())
    expected = drawn(pipeline, PROMPTS, guidance=terms(pipeline), num_inference_steps=STEPS)
    moved = pipeline.to("cuda")
    ours = drawn(moved, PROMPTS, guidance=terms(moved), num_inference_steps=STEPS)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_the_shipped_checkpoint_draws_the_same_clothes():
    arguments = {"num_inference_steps": 25}
    on_cpu = drawn(TextToImagePipeline.from_pretrained(pretrained("fashion-32")), PROMPTS, **arguments)
    for dtype, bound in ((torch.float32, 0.01), (torch.float16, 0.05)):
        pipeline = TextToImagePipeline.from_pretrained(pretrained("fashion-32"), dtype=dtype).to("cuda")
        assert (drawn(pipeline, PROMPTS, **arguments) - on_cpu).abs().mean() < bound


def test_callbacks_get_tensors_of_the_device_and_may_replace_them():
    pipeline, seen = text_to_image().to("cuda"), []

    def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.extend(tensor.device.type for tensor in tensors.values())
        return {"latents": tensors["latents"] * 0.5}

    names = ["latents", "prompt_embeds"]
    changed = drawn(
        pipeline, PROMPTS, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names
    )
    assert set(seen) == {"cuda"} and (changed - drawn(pipeline, PROMPTS)).abs().max() > 1e-3


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_schedulers_tables_follow_the_samples(variance_type):
    scheduler = GuidedDDPMScheduler(variance_type=variance_type, clip_sample=False)
    scheduler.set_timesteps(10)
    draw = torch.Generator().manual_seed(0)
    sample, output = (torch.randn(3, 2, 4, 4, generator=draw) for _ in range(2))
    timestep = scheduler.timesteps[[2, 5, 9]]
    channels = output if variance_type == "learned_range" else None
    for name, arguments in {
        "posterior": (output, sample, timestep),
        "log_variance": (timestep, channels),
        "add_noise": (output, sample, timestep),
    }.items():
        expected = getattr(scheduler, name)(*arguments)
        moved = [each.cuda() if isinstance(each, torch.Tensor) else each for each in arguments]
        ours = getattr(scheduler, name)(*moved)
        pairs = zip(ours, expected, strict=True) if isinstance(ours, tuple) else [(ours, expected)]
        for one, other in pairs:
            torch.testing.assert_close(one.cpu(), other)


def test_bounds_and_likelihoods():
    scheduler = GuidedDDPMScheduler(num_train_timesteps=20, clip_sample=False)
    schedulers = {kind: with_variance(scheduler, kind) for kind in ("fixed_small", "fixed_large")}
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network, vae = tiny_image_unet(), autoencoder().vae
    pictures = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def measured(device: str) -> list[torch.Tensor]:
        bounds = estimated_bound(copy.deepcopy(network).to(device), schedulers, images.to(device), 4)
        nats = vae.to(device).log_likelihood(pictures.to(device), num_samples=8)
        return [*(bound.total.cpu() for bound in bounds.values()), nats.cpu()]

    for ours, expected in zip(measured("cuda"), measured("cpu"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3, check_dtype=False)


def trained(name: str, folder: Any, shared: Any, devices: str, **training: Any) -> list[dict[str, Any]]:
    """The log of a training script that sees these GPUs."""
    words = [sys.executable, *command(name, folder, shared, **training)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return records(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_script_trains_as_on_a_cpu(name, shared, tmp_path):
    runs = [trained(name, tmp_path / device, shared, device) for device in ("", "0")]
    for loss in sorted(runs[0][-1]["learning_rate"]):
        first, last = ([run[place][loss] for run in runs if loss in run[place]] for place in (0, -1))
        assert not first or first[0] == pytest.approx(first[1], rel=5e-3, abs=1e-3)
        assert not last or last[0] == pytest.approx(last[1], rel=0.1, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["autoencoder", "text-to-image"])
def test_scripts_train_in_mixed_precision_and_go_on_where_they_stopped(name, precision, shared, tmp_path):
    folder, common = tmp_path / "run", {"mixed_precision": precision}
    half = trained(name, folder, shared, "0", **common, stop_at_images=160)
    whole = trained(name, folder, shared, "0", **common)
    assert half[-1]["images"] == 160 and whole[-1]["images"] == 320
    losses = [record[loss] for record in whole for loss in record["learning_rate"] if loss in record]
    assert losses and all(loss == loss and abs(loss) < 1e3 for loss in losses)


PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}
"""bfloat16 operations a second of some GPUs, without sparsity."""


UNET = {
    "block_out_channels": (192, 384, 576),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
NETWORKS = {
    "unet": lambda: diffusers.UNet2DModel(sample_size=32, in_channels=4, out_channels=4, **UNET),
    "dit": lambda: diffusers.DiTTransformer2DModel(12, 64, in_channels=4, out_channels=4, num_layers=10),
}
"""Of about 100 million parameters."""


class Copying:
    """A network learns to give back the noise that it is given: nothing but it takes time."""

    num_samples, averaged = 1024, ("network",)

    def __init__(self, name: str, config: TrainingConfig) -> None:
        torch.manual_seed(0)
        self.network = NETWORKS[name]()
        self.modules = {"network": self.network}
        self.optimizers = {"network": make_optimizer(config, self.network.parameters())}

    def batch(self, indices: list[int], positions: list[int]) -> torch.Tensor:
        return torch.zeros(len(indices), 4, 32, 32)

    def losses(self, batch: torch.Tensor) -> Any:
        noise, times = torch.randn_like(batch), torch.zeros(len(batch), dtype=torch.long, device=batch.device)
        told = {"class_labels": times} if hasattr(self.network, "transformer_blocks") else {}
        yield "network", (self.network(noise, times, **told).sample - noise).square().mean(), {}

    def validate(self, images_seen: int, modules: Any, folder: Any) -> dict[str, float]:
        return {}

    def save(self, folder: Any, modules: Any) -> None:
        modules["network"].save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "parameters"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", NETWORKS)
def test_100_million_parameters_train_in_bfloat16(name, compiled, sharding, tmp_path):
    """Whole, or split over the one process; prints images a second, memory, and the share of the peak."""
    settings = {"batch_size": 64, "num_images": 64 * 60, "warmup_images": 0, "log_every_images": 64 * 30}
    settings |= {"snapshot_fractions": (), "validate_every_images": 0, "checkpoint_every_images": 64 * 30}
    config = TrainingConfig(output_dir=str(tmp_path), mixed_precision="bf16", sharding=sharding, **settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.cuda.reset_peak_memory_stats()
    task = Copying(name, config)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    with FlopCounterMode(display=False) as counter:
        next(task.losses(torch.zeros(1, 4, 32, 32)))
    if compiled:
        task.network.compile()
    train(task, config, accelerator=make_accelerator(config))
    first, last = records(tmp_path)
    rate, memory = last["images_per_second"], torch.cuda.max_memory_allocated() / 2**30
    gpu = torch.cuda.get_device_name()
    peak = next((most for known, most in PEAKS.items() if known in gpu), float("nan"))
    share = 3 * counter.get_total_flops() * rate / peak
    print(f"\n{gpu}, {parameters / 1e6:.0f}M: {rate:.0f} images/s, {memory:.1f} GiB, {share:.1%} of the peak")
    assert 8e7 < parameters < 2e8 and last["network"] < first["network"]
