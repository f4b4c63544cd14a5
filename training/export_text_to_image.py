"""Puts a checkpoint together from training runs: a TextToImagePipeline in half the size, and a weak network.

    python training/export_text_to_image.py --pipeline runs/fashion_text_to_image/final \
        --autoencoder runs/fashion_autoencoder_decoder/final \
        --weak runs/fashion_text_to_image/snapshots/53760 \
        --scheduler GuidedDDPMScheduler --guidance_scale 2 --output fashion-32

Networks are written in float16 and loaded as float32, but for the text encoder, which stays float32:
transformers loads it as it finds it. The weak network goes to `weak_unet/`, beside the pipeline and not part
of it; it is loaded by `UNet2DConditionModel.from_pretrained(folder, subfolder="weak_unet")`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import UNet2DConditionModel

from guided_diffusers import TextToImagePipeline, VariationalAutoencoder, schedulers
from guided_diffusers.hub.component import find_component, load_network
from guided_diffusers.store.files import atomic_folder
from guided_diffusers.training.engine.script import run_main


def main() -> None:
    """Parse the command line and write the folder."""
    arguments = _arguments()
    cls = getattr(schedulers, arguments.scheduler, None)
    if cls is None:
        raise SystemExit(
            f"error: --scheduler {arguments.scheduler} is not one of guided_diffusers.schedulers"
        )
    trained = TextToImagePipeline.from_pretrained(arguments.pipeline)
    vae = trained.vae
    if arguments.autoencoder is not None:
        vae = VariationalAutoencoder.from_pretrained(**find_component(str(arguments.autoencoder), "vae"))
    pipeline = TextToImagePipeline(
        vae=None if vae is None else vae.half(),
        pixels=trained.config.pixels,
        text_encoder=trained.text_encoder.float(),
        tokenizer=trained.tokenizer,
        unet=trained.unet.half(),
        scheduler=cls.from_config(trained.scheduler.config),
        requires_safety_checker=False,
        default_guidance=arguments.guidance_scale,
    )
    with atomic_folder(arguments.output) as folder:
        pipeline.save_pretrained(folder)
        if arguments.weak is not None:
            weak = load_network(UNet2DConditionModel, str(arguments.weak / "unet"), "unet")
            weak.half().save_pretrained(folder / "weak_unet")
        for path in folder.rglob("*.json"):
            _forget_origin(path)
        _keep_others(arguments.output, folder)
    size = sum(path.stat().st_size for path in arguments.output.rglob("*") if path.is_file())
    print(f"{arguments.output}: {size / 1e6:.1f} MB")


def _keep_others(old: Path, new: Path) -> None:
    """Bring along what lies in the old folder and is not written anew, such as a card."""
    for path in old.rglob("*"):
        place = new / path.relative_to(old)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def _forget_origin(path: Path) -> None:
    """Take out the folder that a configuration was loaded from: it means nothing elsewhere."""
    config = json.loads(path.read_text())
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="final/ of a text-to-image run")
    parser.add_argument("--autoencoder", type=Path, help="another autoencoder with the same latents")
    parser.add_argument("--weak", type=Path, help="a folder of snapshots/ of the same run")
    parser.add_argument(
        "--scheduler", default="GuidedDDPMScheduler", help="one of guided_diffusers.schedulers"
    )
    parser.add_argument("--guidance_scale", type=float, required=True, help="the default guidance")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
