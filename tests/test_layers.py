"""The direction of imports, read from the import statements: down or sideways, never up."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "guided_diffusers"

GROUND, FIRST, SECOND, THIRD, TOP = range(5)
FLOORS = {
    "noise_level": GROUND,
    "exact": GROUND,
    "prediction": GROUND,
    "randomness": GROUND,
    "distributions": GROUND,
    "schedulers": FIRST,
    "models": FIRST,
    "denoiser": FIRST,
    "networks": FIRST,
    "caption_words": FIRST,
    "conditioning": FIRST,
    "transformers_models": FIRST,
    "guidance": SECOND,
    "sampling": SECOND,
    "losses": SECOND,
    "likelihood": SECOND,
    "variational": SECOND,
    "importance": SECOND,
    "evaluation": SECOND,
    "convert": THIRD,
    "pipelines": THIRD,
    "training": THIRD,
    "stock": THIRD,
    "checks": GROUND,
    "columns": GROUND,
    "config_safety": GROUND,
    "safety": GROUND,  # folders of files, of whatever model
    "weight_files": GROUND,
    "files": GROUND,
    "finite": GROUND,
    "image_reader": GROUND,
    "launch": GROUND,
    "hub": FIRST,
    "checkpoints": GROUND,
    "components": GROUND,
    "_registration": GROUND,
    "cli": TOP,
    "__main__": TOP,
}
"""The floor of every module or folder directly under src/guided_diffusers."""

GROUND_LIBRARIES = {"torch", "numpy"}
"""What the arithmetic of the ground floor may import beside the standard library."""


def modules_under(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, module: str = "") -> set[str]:
    """Every imported name in dotted form, `from a import b` as a.b; relative ones from `module`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def floor_of(name: str) -> int:
    return FLOORS[name.split(".")[1]]


def ours(names: set[str]) -> set[str]:
    """Those of our package, `from guided_diffusers import Name` resolved to the module that has the name."""
    import guided_diffusers

    result = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "guided_diffusers":
            continue
        home = guided_diffusers._HOME.get(parts[1]) if len(parts) > 1 else None
        if len(parts) > 2 or home is None:
            home = name
        if home.startswith("guided_diffusers.") and home != "guided_diffusers.__version__":
            result.add(home)
    return result


INSIDE = [path for path in modules_under(PACKAGE) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", INSIDE, ids=dotted)
def test_imports_go_down_or_sideways(path: Path):
    module = dotted(path)
    assert module.split(".")[1] in FLOORS, f"{module}: say in FLOORS on which floor it stands"
    upwards = {name for name in ours(imports_of(path, module)) if floor_of(name) > floor_of(module)}
    assert not upwards, f"{module} imports from a floor above: {sorted(upwards)}"


@pytest.mark.parametrize("name", ["exact", "noise_level", "prediction", "randomness"])
def test_ground_floor_needs_torch_only(name: str):
    imported = imports_of(PACKAGE / f"{name}.py", f"guided_diffusers.{name}")
    libraries = {item.split(".")[0] for item in imported}
    foreign = libraries - set(sys.stdlib_module_names) - GROUND_LIBRARIES - {"guided_diffusers"}
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
    assert all(floor_of(name) > FLOORS["guidance"] for name in found)
