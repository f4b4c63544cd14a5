"""The CLIP-guided pipeline through its shim, in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny import tiny_tokenizer
from tiny_classifier import tiny_image_unet
from tiny_clip import tiny_clip

from guided_diffusers import ClassifierGuidedTextToImagePipeline, GuidedDDPMScheduler
from guided_diffusers.schedulers import describe_process

ROOT = Path(__file__).parents[2]

THROUGH_THE_SHIM = """
import json, sys
import torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
assert "guided_diffusers" not in sys.modules
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[2], trust_remote_code=True)
print(type(pipeline).__name__)
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(3)
arguments = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", "classifier_scale": 3}
print(json.dumps(pipeline(["bag", "coat"], **arguments).images.double().flatten().tolist()))
"""


def test_the_shim_loads_the_pipeline(tmp_path: Path):
    scheduler = GuidedDDPMScheduler()
    clip = tiny_clip(process=describe_process(scheduler))
    pipeline = ClassifierGuidedTextToImagePipeline(tiny_image_unet(), scheduler, clip, tiny_tokenizer())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    shim = ROOT / "pipelines" / "classifier_guided_text_to_image"
    command = [sys.executable, "-c", THROUGH_THE_SHIM, str(tmp_path / "checkpoint"), str(shim)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr[-4000:]
    name, drawn = process.stdout.splitlines()[-2:]
    assert name == "ClassifierGuidedTextToImagePipeline"

    generator = torch.Generator().manual_seed(3)
    arguments = {"num_inference_steps": 2, "generator": generator, "classifier_scale": 3}
    expected = pipeline(["bag", "coat"], output_type="pt", **arguments).images
    torch.testing.assert_close(torch.tensor(json.loads(drawn)), expected.flatten(), rtol=0, atol=1e-5)
