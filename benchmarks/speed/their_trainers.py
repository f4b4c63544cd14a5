"""The trainers of denoising_diffusion_pytorch and facebookresearch/DiT on a folder of pictures, on a CPU.

    their_trainers.py ddp --images FOLDER --output FOLDER --batch-size 16
    their_trainers.py dit --images FOLDER --output FOLDER --batch-size 16 --autoencoder FOLDER

They run under instrumented.py. The first is called as its README does, without what a CPU has not (float16)
and what needs the network (FID). The second is DiT's own train.py, its text unchanged: its model, loss,
AdamW, average and loaders. It asks for a GPU: here its device is the CPU, its processes speak gloo instead
of nccl, there is nothing to synchronize, and its autoencoder is the folder given instead of a download.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed
from instrumented import stopwatch
from their_networks import CLASSES, DDP_SIZE, DIT_SIZE


def main() -> None:
    """Parses the command line, and trains until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", choices=["ddp", "dit"])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--autoencoder", type=Path)
    arguments = parser.parse_args()
    {"ddp": denoising_diffusion, "dit": dit}[arguments.trainer](arguments)


def denoising_diffusion(arguments: argparse.Namespace) -> None:
    """Trainer of denoising_diffusion_pytorch."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    diffusion = GaussianDiffusion(
        Unet(channels=1, **DDP_SIZE),
        image_size=arguments.resolution,
        timesteps=1000,
        sampling_timesteps=250,
    )
    Trainer(
        diffusion,
        str(arguments.images),
        train_batch_size=arguments.batch_size,
        train_lr=8e-5,
        train_num_steps=10**9,
        save_and_sample_every=10**9,
        calculate_fid=False,
        results_folder=str(arguments.output),
    ).train()


class _Cpu:
    """The count of devices, of which every rank's is the CPU."""

    def __rmod__(self, rank: int) -> torch.device:
        return torch.device("cpu")


def dit(arguments: argparse.Namespace) -> None:
    """DiT's train.py."""
    checkout = Path(os.environ["DIT_CHECKOUT"])
    sys.path[:] = [str(checkout), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
    begin, parallel = torch.distributed.init_process_group, torch.nn.parallel.DistributedDataParallel
    load, autoencoder = diffusers.AutoencoderKL.from_pretrained, arguments.autoencoder
    alone = {"init_method": f"file://{arguments.output}.store", "rank": 0, "world_size": 1}
    alone = {} if "RANK" in os.environ else alone
    torch.distributed.init_process_group = lambda backend: begin("gloo", **alone)
    torch.nn.parallel.DistributedDataParallel = lambda module, device_ids: parallel(module)
    diffusers.AutoencoderKL.from_pretrained = lambda name: load(autoencoder)
    script: dict[str, Any] = runpy.run_path(str(checkout / "train.py"), run_name="dit_train")
    update = stopwatch.timed("average of weights", script["update_ema"])
    script["main"].__globals__["update_ema"] = update
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, _Cpu
    torch.cuda.set_device, torch.cuda.synchronize = lambda device: None, lambda: None
    script["main"](
        argparse.Namespace(
            data_path=str(arguments.images),
            results_dir=str(arguments.output),
            model=DIT_SIZE,
            image_size=arguments.resolution,
            num_classes=CLASSES,
            epochs=10**6,
            global_batch_size=arguments.batch_size,
            global_seed=0,
            vae="ema",
            num_workers=4,
            log_every=100,
            ckpt_every=10**9,
        )
    )


if __name__ == "__main__":
    main()
