r"""Measures what a LoRA taught a text-to-image model of Fashion-MNIST, and what it forgot.

    python benchmarks/studies/lora/measure.py --base runs/fashion_without_bag/final \
        --lora runs/fashion_lora/final \
        --class bag --data data/fashion --judge cache/judge.safetensors --output lora.json

Both are asked for the same prompts from the same noise, as many of each class; the judge says which class
each picture shows. The same LoRA in StableDiffusionPipeline is compared latent by latent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from guided_diffusers import TextToImagePipeline
from guided_diffusers.evaluation import ImageSet, agreement, judge_images, load_judge, read_images
from guided_diffusers.evaluation.labelled import captions_by_class, generate
from guided_diffusers.evaluation.runs import machine, training_run, write_json
from guided_diffusers.guidance import ClassifierFreeGuidance


def main() -> None:
    """Parses the command line, draws with both, judges and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="the pipeline's folder")
    parser.add_argument("--lora", type=Path, required=True, help="the folder with the LoRA's file")
    parser.add_argument("--class", dest="taught", required=True, help="the class that the base never saw")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.parquet, of all classes")
    parser.add_argument("--judge", type=Path, required=True, help="what fashion_32/judge.py wrote")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    real, (judge, facts) = read_images(arguments.data / "test.parquet"), load_judge(arguments.judge)
    pipeline = TextToImagePipeline.from_pretrained(arguments.base)
    pipeline.set_progress_bar_config(disable=True)
    base = agreements(pipeline, judge, real, arguments)
    pipeline.load_lora_weights(arguments.lora)
    adapted = agreements(pipeline, judge, real, arguments)
    files = sorted(arguments.lora.glob("*.safetensors"))
    settings = {"images_per_class": arguments.images_per_class, "steps": arguments.steps}
    results = {
        "class": arguments.taught,
        "settings": {**settings, "guidance_scale": arguments.guidance_scale},
        "base": summary(base, arguments.taught),
        "lora": summary(adapted, arguments.taught),
        "bytes": sum(file.stat().st_size for file in files),
        "stock_difference": stock_difference(pipeline, arguments),
        "judge": facts,
        "machine": machine(),
        "training": {name: training_run(getattr(arguments, name).parent) for name in ("base", "lora")},
    }
    write_json(arguments.output, results)


def agreements(pipeline: Any, judge: Any, real: ImageSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """The judge's agreement with the prompt, by class."""
    made = generate(
        pipeline,
        captions_by_class(real),
        guidance=ClassifierFreeGuidance(arguments.guidance_scale),
        images_per_class=arguments.images_per_class,
        num_inference_steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=0,
    )
    agrees = agreement(judge_images(judge, made.images), made.labels)
    return {real.names[label]: estimate.to_dict() for label, estimate in agrees.per_class.items()}


def summary(by_class: dict[str, Any], taught: str) -> dict[str, Any]:
    """The agreement of the class that was taught, and the mean of the others."""
    others = [estimate["value"] for name, estimate in by_class.items() if name != taught]
    return {"taught": by_class[taught], "others": sum(others) / len(others), "by_class": by_class}


def stock_difference(pipeline: Any, arguments: argparse.Namespace) -> float:
    """The largest difference of latents between StableDiffusionPipeline and ours, both with the LoRA."""
    stock = StableDiffusionPipeline.from_pretrained(arguments.base)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(arguments.lora)
    latents = [
        pipe(
            f"a photo of a {arguments.taught}",
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
        for pipe in (pipeline, stock)
    ]
    return float((latents[0] - latents[1]).abs().max())


if __name__ == "__main__":
    main()
