"""Time of TextToImagePipeline over StableDiffusionPipeline and over its own network calls.

    python benchmarks/speed/inference_speed.py --size 4M --output speed-4M.json
    python benchmarks/speed/inference_speed.py --size 27M --output speed-27M.json
    python benchmarks/speed/inference_speed.py --checkpoint fashion-32 --output speed-fashion-32.json
    python benchmarks/speed/inference_speed.py --checkpoint fashion-32 --compile --output speed-compiled.json
    python benchmarks/speed/inference_speed.py --size 860M --device cuda --dtype float16

Four ratios, each of interleaved pairs, with equal prompts, initial latents, steps and components:

    over_stable_diffusion   our call / StableDiffusionPipeline's; their latents must agree to 1e-4 (in half
                            precision, which it keeps its sample in and we do not, to 5% of their deviation)
    over_network_calls      our call / the same forward passes of the same modules on recorded inputs
    with_interval           our call, guided on 8 of 20 steps / StableDiffusionPipeline's, guided on all
    under_guide             StableDiffusionPipeline's call under `guide`, plain guidance / without it

The interval's upper end should be at most 1.02, 1.10, 0.78 and 1.02.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from models import PROMPTS, SIZES, random_components
from pairs import line, time_pairs
from torch import Tensor, nn

from guided_diffusers import TextToImagePipeline, guide, noise_level, pretrained
from guided_diffusers.evaluation.runs import machine, parameters_millions, write_json
from guided_diffusers.guidance import ClassifierFreeGuidance

BOUNDS = {
    "over_stable_diffusion": 1.02,
    "over_network_calls": 1.10,
    "with_interval": 0.78,
    "under_guide": 1.02,
}
AGREEMENT = 1e-4
HALF_AGREEMENT = 0.05  # root mean square, of the deviation


def main() -> None:
    """Parses the command line, measures, prints and writes; exits with 1 where the outputs do not agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="4M", help="random weights of this size")
    parser.add_argument("--checkpoint", default=None, help="a folder or a shipped name, not --size")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guided-steps", type=int, default=8, help="steps inside the guidance interval")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(BOUNDS), default=None, help="one of the ratios")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser, which all share")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(arguments)
    for name in (name for name in BOUNDS if name in results):
        print(line(name, results[name]), flush=True)
    write_json(arguments.output, results)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All ratios, with what they were taken on."""
    components = components_of(arguments.checkpoint, arguments.size)
    ours, theirs = (pipeline.to(arguments.device) for pipeline in pipelines(components))
    if arguments.dtype != "float32":
        ours.to(getattr(torch, arguments.dtype))  # their modules are the same
    common = call_arguments(ours, arguments)
    interval = interval_of(ours.scheduler, arguments.steps, arguments.guided_steps)

    def ours_runs() -> Tensor:
        return ours(**common).images

    def theirs_runs() -> Tensor:
        return theirs(**common).images

    def interval_runs() -> Tensor:
        return ours(**common, guidance_interval=interval).images

    def guided_runs() -> Tensor:
        with guide(theirs, ClassifierFreeGuidance(arguments.guidance_scale)):
            return theirs_runs()

    latents = [pipeline(**{**common, "output_type": "latent"}).images.float() for pipeline in (ours, theirs)]
    difference = check_agreement(*latents, exact=arguments.dtype == "float32")
    guided = guided_steps(ours.unet, interval_runs, arguments.batch_size)
    if guided != arguments.guided_steps:
        raise SystemExit(f"guidance was active on {guided} steps, not on {arguments.guided_steps}")
    calls = record_calls(network_modules(ours), ours_runs)

    def bare_calls() -> None:
        with torch.no_grad():
            for module, positional, named in calls:
                module(*positional, **named)

    if arguments.compile:  # a graph for each batch size; the untimed runs of `time_pairs` wait for it
        ours.unet.compile(dynamic=False)
    contests = {
        "over_stable_diffusion": (ours_runs, theirs_runs),
        "over_network_calls": (ours_runs, bare_calls),
        "with_interval": (interval_runs, theirs_runs),
        "under_guide": (guided_runs, theirs_runs),
    }
    chosen = [arguments.only] if arguments.only else list(contests)
    times = {name: time_pairs(*contests[name], pairs=arguments.pairs) for name in chosen}
    reports = {name: time.report(BOUNDS[name]) for name, time in times.items()}
    return {
        "model": arguments.checkpoint or arguments.size,
        "compiled": arguments.compile,
        "dtype": arguments.dtype,
        "unet_parameters_millions": parameters_millions(ours.unet),
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "guided_steps": guided,
        "network_calls": len(calls),
        "largest_difference": difference,
        "machine": machine(arguments.device),
        **reports,
    }


def check_agreement(ours: Tensor, theirs: Tensor, exact: bool) -> float:
    """The largest difference of latents, or where that means little, the root mean square over the deviation.

    Raises:
        SystemExit: It is too large for the times to be of the same work.
    """
    apart = ours - theirs
    difference = (apart.abs().max() if exact else apart.square().mean().sqrt() / theirs.std()).item()
    allowed = AGREEMENT if exact else HALF_AGREEMENT
    if not difference <= allowed:
        raise SystemExit(f"the two pipelines' latents differ by {difference:.2e}, more than {allowed}")
    return difference


def components_of(checkpoint: str | None, size: str) -> dict[str, Any]:
    """Stable Diffusion's components of a checkpoint, under DDIM, or random ones of a size."""
    if checkpoint is None:
        return random_components(SIZES[size])
    folder = checkpoint if Path(checkpoint).is_dir() else pretrained(checkpoint)
    pipeline = TextToImagePipeline.from_pretrained(folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=1, clip_sample=False)
    theirs = {name: part for name, part in pipeline.components.items() if name != "weak_unet"}
    return {**theirs, "scheduler": scheduler}


def pipelines(components: dict[str, Any]) -> tuple[TextToImagePipeline, StableDiffusionPipeline]:
    """Ours and theirs over the same modules, each with a scheduler of its own."""
    ours = TextToImagePipeline(**{**components, "scheduler": copy.deepcopy(components["scheduler"])})
    theirs = StableDiffusionPipeline(
        **{**components, "scheduler": copy.deepcopy(components["scheduler"])}, requires_safety_checker=False
    )
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    return ours, theirs


def call_arguments(pipeline: TextToImagePipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """What both pipelines are called with."""
    config, batch = pipeline.unet.config, arguments.batch_size
    shape = (batch, config.in_channels, config.sample_size, config.sample_size)
    return {
        "prompt": [PROMPTS[index % len(PROMPTS)] for index in range(batch)],
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "latents": torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(pipeline.unet.dtype),
        "height": config.sample_size * pipeline.vae_scale_factor,
        "width": config.sample_size * pipeline.vae_scale_factor,
        "output_type": "pt",
    }


def interval_of(scheduler: DDIMScheduler, steps: int, guided: int) -> tuple[float, float]:
    """(low, high] in sigma/alpha that holds exactly `guided` consecutive steps in the middle of the run."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    ratios = [float(noise_level(scheduler, timestep).noise_to_signal) for timestep in scheduler.timesteps]
    first = (steps - guided) // 2
    following = ratios[first + guided] if first + guided < steps else 0.0
    return following, ratios[first]


def guided_steps(unet: nn.Module, run: Callable[[], object], batch_size: int) -> int:
    """On how many forward passes of a run the batch was doubled."""
    sizes = [positional[0].shape[0] for _, positional, _ in record_calls([unet], run)]
    return sum(size == 2 * batch_size for size in sizes)


def network_modules(pipeline: TextToImagePipeline) -> list[nn.Module]:
    """The networks that a call runs."""
    return [pipeline.text_encoder, pipeline.unet, pipeline.vae.post_quant_conv, pipeline.vae.decoder]


def record_calls(
    modules: list[nn.Module], run: Callable[[], object]
) -> list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """(module, positional arguments, named arguments) of every forward pass of these modules during a run."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def record(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((module, positional, named))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return calls


if __name__ == "__main__":
    main()
