"""The wheel, installed in an environment of its own: it has all that it needs to generate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*command: object, **options: object) -> str:
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, **options)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--wheel-dir", folder, *options)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, which borrows this one's libraries but not its guided_diffusers.

    The line of a .pth file adds a folder but reads no .pth files in it, so an editable install stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_the_checkpoints_and_no_more_than_the_package(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    data = ROOT / "src" / "guided_diffusers" / "checkpoints_data"
    shipped = {path.relative_to(ROOT / "src").as_posix() for path in data.rglob("*") if path.is_file()}
    assert any(name.endswith("fashion-32/model_index.json") for name in shipped)
    assert shipped <= set(names)
    for pattern in ("train_*.py", "configs/*.yaml"):  # `guided-diffusers train` finds them there
        for path in (ROOT / "training").glob(pattern):
            assert f"guided_diffusers/_training/{path.relative_to(ROOT / 'training').as_posix()}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"guided_diffusers"}


def test_it_generates_outside_the_checkout(environment: Path, tmp_path: Path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    clean["HF_HUB_OFFLINE"] = "1"
    code = "import guided_diffusers; print(guided_diffusers.__file__)"
    imported = run(environment / "bin" / "python", "-c", code, cwd=tmp_path, env=clean)
    assert Path(imported.strip()).is_relative_to(environment)
    command = environment / "bin" / "guided-diffusers"
    output = run(command, "generate", "a photo of a bag", "--steps", 4, cwd=tmp_path, env=clean)
    assert [Path(line).name for line in output.split()] == ["00-a-photo-of-a-bag-seed0-00.png", "grid.png"]
    assert all((tmp_path / line).stat().st_size > 100 for line in output.split())
    words = ("train", "autoencoder", "--config", "fashion_autoencoder", "--cpu", "--dry_run")
    config = json.loads(run(command, *words, cwd=tmp_path, env=clean))
    assert config["training"]["output_dir"] == "runs/fashion_autoencoder"
