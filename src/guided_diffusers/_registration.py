"""Teaches diffusers' loader this library.

Without it, a pipeline with components of ours loads from a folder but not from the Hub, and model_index.json
records the module in which a class happens to live, so no class can ever move. Two things are registered:

- the library, in `LOADABLE_CLASSES`: components are then recorded as `["guided_diffusers", "Class"]`, found
  in this package, and saved and loaded through the base class that the package shares with diffusers;
- our pipelines, as names of the module `diffusers`, where `DiffusionPipeline.from_pretrained` looks for the
  class that a checkpoint names. They are imported only when asked for; diffusers' own names stay its own.

Importing this package does not import diffusers, which takes seconds that `guided-diffusers --help` should
not: what is to be registered is registered as soon as somebody imports diffusers, at once where it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIBRARY, DIFFUSERS = "guided_diffusers", "diffusers"
BASE_CLASSES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline", "BaseGuidance")

_pipelines: set[str] = set()


def register(pipelines: tuple[str, ...]) -> None:
    """Registers the library and its pipelines with diffusers, now or when diffusers is imported.

    Calling it again adds to what was registered.

    Args:
        pipelines: Names of pipeline classes, attributes of the package.
    """
    _pipelines.update(pipelines)
    if DIFFUSERS in sys.modules:
        _register()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported:
    """Stands first on `sys.meta_path` until diffusers is imported, to register as soon as it has been."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all other modules; diffusers as it is found without this, its loader then registering."""
        if name != DIFFUSERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _then_register(spec.loader.exec_module)
        return spec


def _then_register(load: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        load(module)
        _register()

    return exec_module


def _register() -> None:
    classes = import_module("diffusers.pipelines.pipeline_loading_utils").LOADABLE_CLASSES
    for library in (LIBRARY, f"{LIBRARY}.components"):
        classes[library] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_CLASSES}
    module = sys.modules[DIFFUSERS]
    if not getattr(type(module), "finds_guided_diffusers", False):
        module.__class__ = _with_our_pipelines(type(module))


def _with_our_pipelines(base: type[ModuleType]) -> type[ModuleType]:
    """The type of the module `diffusers`, with our pipelines where its own attribute lookup fails."""

    class ModuleWithGuidedPipelines(base):
        finds_guided_diffusers = True

        def __getattr__(self, name: str) -> Any:
            own = getattr(super(), "__getattr__", None)
            try:
                if own is not None:
                    return own(name)
            except AttributeError:
                if name not in _pipelines:
                    raise
            if name in _pipelines:
                return getattr(import_module(LIBRARY), name)
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    return ModuleWithGuidedPipelines
