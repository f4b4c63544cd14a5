"""A training run on many GPUs, planned on paper from what can be counted and measured here.

    python benchmarks/speed/plan.py --output plan.json
    python benchmarks/speed/plan.py --layers 28 --width 1152 --gpus 8 --images 20e6 --share 0.45

Counted, without a GPU and without memory, on the meta device: the parameters of a DiT, the operations of its
forward pass, what autograd keeps of an image for the backward pass. Measured on a small one: the bytes a
parameter that the engine's own optimizer and averages hold, and the bytes of a picture in the cache. Given,
and printed as such: a GPU's peak, memory and links, and the share of the peak that a step reaches, which only
a GPU tells (`tests/test_cuda.py` prints it).

A step takes the longer of its computing and its messages, which overlap: gradients are reduced in float32,
and under `training.sharding` weights are gathered in bfloat16, once or, of `parameters`, twice.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusers.evaluation.runs import write_json
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.ema import ExponentialMovingAverage
from guided_diffusers.training.engine.setup import make_optimizer

MESSAGES = {"none": 4 + 4, "gradients": 2 + 4, "parameters": 2 + 2 + 4}
"""Bytes a parameter and step to a GPU: of DistributedDataParallel gradients are reduced, then gathered."""


def main() -> None:
    """Parse the command line, count, and print the plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28, help="blocks of the DiT")
    parser.add_argument("--width", type=int, default=1408, help="channels, in heads of 64 or 88")
    parser.add_argument("--latent", type=int, default=32, help="side of the latent, patches of 2; 4 channels")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--pictures", type=float, default=100e6, help="of the data set")
    parser.add_argument("--images", type=float, default=400e6, help="to see in all")
    parser.add_argument("--batch", type=int, default=4096, help="images a step, over all GPUs")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that a step reaches (assumed)")
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second (H100, bfloat16)")
    parser.add_argument("--memory", type=float, default=80e9, help="bytes of a GPU")
    parser.add_argument("--link", type=float, default=50e9, help="bytes a second to a GPU (400 Gb/s)")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    given = vars(parser.parse_args())
    output = given.pop("output")
    found = plan(given, counted(given["layers"], given["width"], given["latent"]))
    write_json(output, {"given": given, **found})


def dit(layers: int, width: int, latent: int) -> nn.Module:
    """A DiT of latents of 4 channels, in patches of 2."""
    head = next(size for size in (64, 72, 88, 8) if width % size == 0)
    return DiTTransformer2DModel(
        num_attention_heads=width // head,
        attention_head_dim=head,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=latent,
    )


def counted(layers: int, width: int, latent: int) -> dict[str, float]:
    """What needs no GPU to know: of the network on the meta device, and of a small one."""
    with torch.device("meta"):
        network = dit(layers, width, latent).train()
        inputs = torch.empty(1, 4, latent, latent), torch.zeros(1, dtype=torch.long)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights:
                kept[storage] = tensor  # each memory once
            return tensor

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            network(inputs[0], timestep=inputs[1], class_labels=inputs[1])
    elements = sum(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in kept.values())
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "operations_an_image": 3 * counter.get_total_flops(),  # a backward pass is two forward passes
        "activation_bytes_an_image": 2 * elements,  # bfloat16
        "checkpointed_bytes_an_image": 2 * (layers * width * (latent // 2) ** 2 + elements / layers),
        "state_bytes_a_parameter": state_bytes(),
        "cached_bytes_a_picture": 2 * 2 * 4 * latent**2,  # means and deviations, float16
    }


def state_bytes() -> float:
    """Bytes a parameter that a step leaves: weight, gradient, the optimizer's state, the average."""
    torch.manual_seed(0)
    network = nn.Linear(1000, 1000, bias=False)
    optimizer = make_optimizer(TrainingConfig(output_dir=""), network.parameters())
    average = ExponentialMovingAverage({"network": network}, 1.0)
    network(torch.randn(1, 1000)).sum().backward()
    optimizer.step()
    held = [network.weight, network.weight.grad, *average.state_dict()["network"].values()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in held) / network.weight.numel()


def plan(given: dict[str, Any], network: dict[str, float]) -> dict[str, Any]:
    """Memory, time and bytes of the run."""
    gpus, parameters = given["gpus"], network["parameters"]
    each = given["batch"] / gpus
    state = network["state_bytes_a_parameter"] * parameters
    computing = each * network["operations_an_image"] / (given["share"] * given["peak"])
    steps = given["images"] / given["batch"]
    stored = (network["state_bytes_a_parameter"] - 4) * parameters  # no gradient
    # the largest block is whole for a moment, in bfloat16, and so is its gradient, in float32
    block = (2 + 4) * parameters / given["layers"]
    ways = {}
    for way, message in MESSAGES.items():
        here = (
            state if way == "none" else state / gpus + block + (2 * parameters if way == "gradients" else 0)
        )
        free = given["memory"] - here
        messages = message * parameters * (gpus - 1) / gpus / given["link"]
        step = max(computing, messages)
        ways[way] = {
            "state_gigabytes_a_gpu": here / 1e9,
            "images_that_fit_a_gpu": math.floor(free / network["activation_bytes_an_image"]),
            "with_gradient_checkpointing": math.floor(free / network["checkpointed_bytes_an_image"]),
            "seconds_of_messages": messages,
            "images_a_second": given["batch"] / step,
            "days": steps * step / 86400,
        }
    return {
        "counted": network,
        "images_a_gpu_and_step": each,
        "seconds_of_computing": computing,
        "sharding": ways,
        "checkpoint_gigabytes": {"whole": stored / 1e9, "a process": stored / gpus / 1e9},
        "data_gigabytes": given["pictures"] * network["cached_bytes_a_picture"] / 1e9,
        "data_megabytes_a_second": given["batch"] / computing * network["cached_bytes_a_picture"] / 1e6,
    }


if __name__ == "__main__":
    main()
