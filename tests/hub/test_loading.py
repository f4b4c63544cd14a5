"""The entry points in pipelines/: our classes by `custom_pipeline=`, in a process that has not seen them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub.clients import tiny_image_pipeline
from hub.processes import result_of, start

from guided_diffusers.hub.entry_point import pipeline_file

ROOT = Path(__file__).parents[2]

COMMON = """
import json, sys
import torch
torch.set_num_threads(1)

def describe(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(3)]
    image = pipeline(["a bag"], num_inference_steps=2, generator=generator, output_type="pt").images
    return {
        "pipeline": type(pipeline).__module__ + "." + type(pipeline).__name__,
        "vae": type(pipeline.vae).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "guidance": pipeline.config.default_guidance,
        "image": image.double().flatten().tolist(),
    }
"""


def result_in(environment: dict[str, str], code: str, *arguments: Path) -> dict[str, Any]:
    """What a process's code left in `result`."""
    script = f"{COMMON}\nresult = {{}}\n{code}\nprint('RESULT', json.dumps(result))"
    return result_of(start(environment, "-c", script, *arguments))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> dict[str, Any]:
    """The pipeline as this process has it."""
    from guided_diffusers import TextToImagePipeline

    scope: dict[str, Any] = {}
    exec(COMMON, scope)
    return scope["describe"](TextToImagePipeline.from_pretrained(tiny_folder))


BY_SHIM = """
from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
folder, shim, other = sys.argv[1:]
result["other"] = get_class_from_dynamic_module(other, "pipeline.py", trust_remote_code=True).__name__
result["imported before"] = "guided_diffusers" in sys.modules
try:
    DiffusionPipeline.from_pretrained(folder, custom_pipeline=shim)
except ValueError as error:
    result["untrusted"] = str(error)
for name in ("shim", "again"):
    loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=shim, trust_remote_code=True)
    result[name] = describe(loaded)
"""

BY_EACH = """
from diffusers import DiffusionPipeline
for folder, shim in zip(sys.argv[1::2], sys.argv[2::2]):
    loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=shim, trust_remote_code=True)
    result[shim] = type(loaded).__module__ + "." + type(loaded).__name__
"""

OTHER = "from diffusers import DDIMPipeline\n\n\nclass OtherPipeline(DDIMPipeline):\n    pass\n"


@pytest.fixture(scope="module")
def through_the_shim(
    tiny_folder: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a fresh process gets that never imported the package."""
    other, shim = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("shim") / "text_to_image"
    (other / "pipeline.py").write_text(OTHER)
    shutil.copytree(ROOT / "pipelines" / "text_to_image", shim)
    return result_in(environment, BY_SHIM, tiny_folder, shim, other)


def test_the_shim_loads_the_same_pipeline(through_the_shim: dict[str, Any], expected: dict[str, Any]):
    assert through_the_shim["shim"] == expected
    assert through_the_shim["again"] == expected
    assert expected["pipeline"] == "guided_diffusers.pipelines.text_to_image.TextToImagePipeline"
    assert (expected["vae"], expected["scheduler"]) == ("VariationalAutoencoder", "GuidedDDIMScheduler")


def test_the_shim_comes_after_another_pipeline_and_imports_us_itself(through_the_shim: dict[str, Any]):
    assert through_the_shim["other"] == "OtherPipeline"
    assert through_the_shim["imported before"] is False


def test_the_shim_is_remote_code_and_needs_trust(through_the_shim: dict[str, Any]):
    assert "trust_remote_code=True" in through_the_shim["untrusted"]


ENTRY_POINTS = sorted(path.parent for path in ROOT.glob("pipelines/*/pipeline.py"))


@pytest.mark.parametrize("folder", ENTRY_POINTS, ids=lambda path: path.name)
def test_an_entry_point_is_what_a_push_writes_and_has_a_readme(folder: Path):
    text = (folder / "pipeline.py").read_text()
    (name,) = re.findall(r"from guided_diffusers import (\w+)", text)
    assert text == pipeline_file(name)
    assert f"pipelines/{folder.name}" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_each_entry_point_loads_by_custom_pipeline(
    tiny_folder: Path, environment: dict[str, str], tmp_path: Path
):
    tiny_image_pipeline().save_pretrained(tmp_path / "image")
    checkpoints = {"image": tmp_path / "image", "text_to_image": tiny_folder}
    pairs = [(checkpoints[path.name], path) for path in ENTRY_POINTS if path.name in checkpoints]
    found = result_in(environment, BY_EACH, *[path for pair in pairs for path in pair])
    assert found[str(ROOT / "pipelines/image")] == "guided_diffusers.pipelines.image.ImagePipeline"
    assert found[str(ROOT / "pipelines/text_to_image")].endswith("TextToImagePipeline")
