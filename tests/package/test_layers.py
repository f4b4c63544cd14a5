"""The direction of imports, read from the import statements: down or sideways, never up."""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from architecture import PACKAGE, ROOT, dotted, imports_of, modules_under, ours, room_of, rooms

HOUSE = (
    ("_registration", "core"),
    ("store",),
    ("hub", "guidance", "schedulers"),
    ("losses", "models", "sampling"),
    ("convert", "evaluation", "likelihood", "steering", "stock"),
    ("pipelines",),
    ("training.engine",),
    ("training.data",),
    ("training", "training.tasks"),
    ("cli", "__main__"),
)
"""The rooms of the package, floor by floor: what a room imports stands below it, or beside it."""


CORE_LIBRARIES = {"torch", "numpy"}
"""What the core may import beside the standard library."""


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(HOUSE) if room_of(name) in floor)


INSIDE = [path for path in modules_under(PACKAGE) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", INSIDE, ids=dotted)
def test_imports_go_down_or_sideways(path: Path):
    module = dotted(path)
    assert any(room_of(module) in floor for floor in HOUSE), f"{module}: say in HOUSE where it stands"
    upwards = {name for name in ours(imports_of(path, module)) if floor_of(name) > floor_of(module)}
    assert not upwards, f"{module} imports from a floor above: {sorted(upwards)}"


def test_rooms_import_in_no_circle():
    tuple(TopologicalSorter(rooms()).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", modules_under(PACKAGE / "core"), ids=dotted)
def test_the_core_needs_torch_only(path: Path):
    libraries = {item.split(".")[0] for item in imports_of(path, dotted(path))}
    foreign = libraries - set(sys.stdlib_module_names) - CORE_LIBRARIES - {"guided_diffusers"}
    assert not foreign


@pytest.mark.parametrize("path", modules_under(PACKAGE / "guidance"), ids=dotted)
def test_guidance_knows_no_scheduler_model_or_pipeline(path: Path):
    names = imports_of(path, dotted(path))
    forbidden = {name for name in ours(names) if name.split(".")[1] in ("schedulers", "models", "pipelines")}
    forbidden |= {name for name in names if name.split(".")[0] in ("diffusers", "transformers")}
    assert not forbidden


SCRIPT_FOLDERS = ("training", "benchmarks", "pipelines", "docs")


def scripts() -> list[Path]:
    """Every script and every module of a folder of scripts."""
    return [path for folder in SCRIPT_FOLDERS for path in modules_under(ROOT / folder)]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_need_the_package_and_their_own_folder(path: Path):
    """A study's modules import one another; nothing imports what stands in another folder of scripts."""
    imported = {name.split(".")[0] for name in imports_of(path, path.stem)}
    own = {other.stem for other in path.parent.glob("*.py")}
    elsewhere = {other.stem for other in scripts()} - own | {*SCRIPT_FOLDERS, "tests"}
    found = {name for name in imported & elsewhere if name not in sys.stdlib_module_names}
    assert not found, f"{path.relative_to(ROOT)} imports from other scripts: {sorted(found)}"


def test_the_package_imports_no_script_or_test():
    for path in modules_under(PACKAGE):
        roots = {name.split(".")[0] for name in imports_of(path, dotted(path))}
        assert not roots & {*SCRIPT_FOLDERS, "tests"}, path


def test_the_check_sees_an_upward_import(tmp_path: Path):
    source = tmp_path / "wrong.py"
    lines = ["from guided_diffusers import TextToImagePipeline", "from ..pipelines import text_to_image"]
    source.write_text("\n".join(lines))
    found = ours(imports_of(source, "guided_diffusers.guidance.wrong"))
    assert found == {"guided_diffusers.pipelines.text_to_image"}
    assert all(floor_of(name) > floor_of("guided_diffusers.guidance") for name in found)
