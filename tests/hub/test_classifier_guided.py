"""The classifier-guided pipeline through its shim, after that of another pipeline, in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny_classifier import tiny_classifier, tiny_image_unet

from guided_diffusers import ClassifierGuidedPipeline, GuidedDDPMScheduler

ROOT = Path(__file__).parents[2]

THROUGH_THE_SHIMS = """
import json, sys
import tiny_classifier, torch  # diffusers imports no module that a checkpoint names
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
folder, other_folder, pipelines = sys.argv[1:]
assert "guided_diffusers" not in sys.modules
names = ("text_to_image", other_folder), ("classifier_guided", folder)
for name, checkpoint in names:
    shim = f"{pipelines}/{name}"
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, custom_pipeline=shim, trust_remote_code=True)
    print(type(pipeline).__name__)
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(3)
arguments = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", "classifier_scale": 3}
print(json.dumps(pipeline(["bag", "coat"], **arguments).images.double().flatten().tolist()))
"""


def test_the_shim_loads_the_pipeline(tmp_path: Path, tiny_folder: Path):
    pipeline = ClassifierGuidedPipeline(tiny_image_unet(), GuidedDDPMScheduler(), tiny_classifier())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    folders = [str(ROOT / name) for name in ("src", "tests", "tests/support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folders = [tmp_path / "checkpoint", tiny_folder, ROOT / "pipelines"]
    command = [sys.executable, "-c", THROUGH_THE_SHIMS, *map(str, folders)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr[-4000:]
    first, second, drawn = process.stdout.splitlines()[-3:]
    assert (first, second) == ("TextToImagePipeline", "ClassifierGuidedPipeline")

    arguments = {
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(3),
        "classifier_scale": 3,
    }
    expected = pipeline(["bag", "coat"], output_type="pt", **arguments).images
    torch.testing.assert_close(torch.tensor(json.loads(drawn)), expected.flatten(), rtol=0, atol=1e-5)
