"""Values of an independent implementation of Gaussian diffusion (tests/goldens/README.md); its schedulers."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}

with safe_open(Path(__file__).parents[1] / "goldens" / "gaussian_diffusion.safetensors", "pt") as opened:
    CONFIG = json.loads(opened.metadata()["config"])
    TENSORS = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def ddpm_for(case):
    from guided_diffusers import GuidedDDPMScheduler  # a test imports this module before the package

    scheduler = GuidedDDPMScheduler(
        beta_schedule=SCHEDULES[case["schedule"]],
        variance_type=case["variance"],
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(int(case["spacing"]))
    return scheduler


def output_for(case, sample):
    """The network's output, of twice the channels where the variance is learned."""
    output = torch.tanh(torch.einsum("oc,bchw->bohw", TENSORS["W"], sample) + case["timestep"] / 1000)
    return output if case["variance"] == "learned_range" else output[:, :3]
