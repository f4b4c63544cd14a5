"""The direction of imports, read from the import statements: down or sideways, never up."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "guided_diffusers"

HOUSE = (
    ("_registration", "core"),
    ("store",),
    ("hub", "guidance", "schedulers"),
    ("losses", "models", "sampling"),
    ("convert", "evaluation", "likelihood", "stock"),
    ("pipelines",),
    ("training.engine",),
    ("training.data",),
    ("training", "training.tasks"),
    ("cli", "__main__"),
)
"""The rooms of the package, floor by floor: what a room imports stands below it, or beside it."""


CORE_LIBRARIES = {"torch", "numpy"}
"""What the core may import beside the standard library."""


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


def room_of(name: str) -> str:
    """The room of a module: its folder of the house, or itself."""
    inner = name.split(".")[1:]
    rooms = [room for floor in HOUSE for room in floor]
    return ".".join(inner[:2]) if ".".join(inner[:2]) in rooms else inner[0]


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(HOUSE) if room_of(name) in floor)


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
    assert any(room_of(module) in floor for floor in HOUSE), f"{module}: say in HOUSE where it stands"
    upwards = {name for name in ours(imports_of(path, module)) if floor_of(name) > floor_of(module)}
    assert not upwards, f"{module} imports from a floor above: {sorted(upwards)}"


def test_rooms_import_in_no_circle():
    above: dict[str, set[str]] = {}
    for path in INSIDE:
        room = room_of(dotted(path))
        above.setdefault(room, set()).update(room_of(name) for name in ours(imports_of(path, dotted(path))))
    graph = {room: imported - {room} for room, imported in above.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


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
