"""The pipelines that a classifier or a CLIP guides through their shims, in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import made
from tiny_classifier import tiny_classifier, tiny_image_unet

from guided_diffusers import ClassifierGuidedPipeline, GuidedDDPMScheduler

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_inference_steps": 2, "output_type": "pt", "classifier_scale": 3}

THROUGH_THE_SHIMS = f"""
import json, sys
import tiny_classifier, torch  # diffusers imports no module that a checkpoint names
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
assert "guided_diffusers" not in sys.modules
for shim, checkpoint in zip(sys.argv[1::2], sys.argv[2::2]):
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, custom_pipeline=shim, trust_remote_code=True)
    print(type(pipeline).__name__)
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(3)
images = pipeline(["bag", "coat"], generator=generator, **{ARGUMENTS}).images
print(json.dumps(images.double().flatten().tolist()))
"""


def by_a_classifier_of_ones_own() -> Any:
    return ClassifierGuidedPipeline(tiny_image_unet(), GuidedDDPMScheduler(), tiny_classifier())


@pytest.mark.parametrize(
    ("make", "earlier"),
    [
        (by_a_classifier_of_ones_own, ["text_to_image"]),
        (lambda: made("ClassifierGuidedTextToImagePipeline"), []),
    ],
    ids=["classifier, after another pipeline", "CLIP"],
)
def test_the_shim_loads_the_pipeline(
    tmp_path: Path, tiny_folder: Path, make: Callable[[], Any], earlier: list[str]
):
    pipeline = make()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    name = type(pipeline).__name__
    shim = {"ClassifierGuidedPipeline": "classifier_guided"}.get(name, "classifier_guided_text_to_image")
    pairs = [*((other, tiny_folder) for other in earlier), (shim, tmp_path / "checkpoint")]
    words = [str(word) for shim, checkpoint in pairs for word in (ROOT / "pipelines" / shim, checkpoint)]
    folders = [str(ROOT / place) for place in ("src", "tests", "tests/support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", THROUGH_THE_SHIMS, *words]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr[-4000:]
    *names, drawn = process.stdout.splitlines()[-len(pairs) - 1 :]
    assert names == ["TextToImagePipeline"] * len(earlier) + [name]
    expected = pipeline(["bag", "coat"], generator=torch.Generator().manual_seed(3), **ARGUMENTS).images
    torch.testing.assert_close(torch.tensor(json.loads(drawn)), expected.flatten(), rtol=0, atol=1e-5)
