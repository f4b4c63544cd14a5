"""Teaches diffusers' loader this library.

Without it, a pipeline with components of ours loads from a folder but not from the Hub, and model_index.json
records the module in which a class happens to live, so no class can ever move. Two things are registered:

- the library, in `LOADABLE_CLASSES`: components are then recorded as `["guided_diffusers", "Class"]`, found
  in this package, and saved and loaded through the base class that the package shares with diffusers;
- our pipelines, as names of the module `diffusers`, where `DiffusionPipeline.from_pretrained` looks for the
  class that a checkpoint names. They are imported only when asked for; diffusers' own names stay its own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

LIBRARY = "guided_diffusers"
BASE_CLASSES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline", "BaseGuidance")

_pipelines: set[str] = set()


def register(pipelines: tuple[str, ...]) -> None:
    """Registers the library and its pipelines with diffusers. Calling it again adds to what was registered.

    Args:
        pipelines: Names of pipeline classes, attributes of the package.
    """
    for library in (LIBRARY, f"{LIBRARY}.components"):
        LOADABLE_CLASSES[library] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_CLASSES}
    _pipelines.update(pipelines)
    module = sys.modules[diffusers.__name__]
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
