"""Teaches diffusers' loader this library.

Without it, a pipeline with components of ours loads from a folder but not from the Hub, and model_index.json
records the module in which a class happens to live, so no class can ever move. Registered are:

- the library, in `LOADABLE_CLASSES`: components are then recorded as `["guided_diffusers", "Class"]`, found
  in this package, and saved and loaded through the base class that the package shares with diffusers;
- our pipelines, as names of the module `diffusers`, where `DiffusionPipeline.from_pretrained` looks for the
  class that a checkpoint names. They are imported only when asked for; diffusers' own names stay its own;
- our text-to-image pipelines, with `AutoPipelineForText2Image` and, for their components, with its siblings
  for an image and for a mask;
- our models, as of the type that they are subclasses of: `from_pipe` of diffusers' own pipelines takes a
  component over only where its type is exactly the annotated one.

Importing this package does not import diffusers, which takes seconds that `guided-diffusers --help` should
not: what is to be registered is registered as soon as somebody imports diffusers, or the module of it that is
concerned; at once where it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
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
    _when_imported(DIFFUSERS, _register)


def _when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Do something to a module, now or as soon as it has been imported; once."""
    if name in sys.modules:
        action(sys.modules[name])
    elif not any(isinstance(finder, _WhenImported) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported(name, action))


class _WhenImported:
    """Stands first on `sys.meta_path` until a module is imported, to act as soon as it has been."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all other modules; its own as it is found without this, whose loader then acts."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _then(spec.loader.exec_module, self.action)
        return spec


def _then(load: Callable[[ModuleType], None], action: Callable[[ModuleType], None]) -> Callable:
    def exec_module(module: ModuleType) -> None:
        load(module)
        action(sys.modules[module.__name__])  # diffusers puts another in its own place

    return exec_module


def _register(module: ModuleType) -> None:
    classes = import_module("diffusers.pipelines.pipeline_loading_utils").LOADABLE_CLASSES
    for library in (LIBRARY, f"{LIBRARY}.store.components"):
        classes[library] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_CLASSES}
    if not getattr(type(module), "finds_guided_diffusers", False):
        module.__class__ = _with_our_pipelines(type(module))
        _when_imported("diffusers.pipelines.pipeline_utils", _accept_our_models)
        _when_imported("diffusers.pipelines.auto_pipeline", _register_auto_pipelines)


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


def _register_auto_pipelines(module: ModuleType) -> None:
    """Our pipelines as models of their own, beside the stock ones that draw with the same components."""
    ours, by_text = import_module(f"{LIBRARY}.pipelines"), module.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    by_text[LIBRARY] = ours.TextToImagePipeline
    by_text[f"{LIBRARY}-classifier"] = ours.ClassifierGuidedTextToImagePipeline
    for mapping in (module.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, module.AUTO_INPAINT_PIPELINES_MAPPING):
        mapping[LIBRARY] = mapping["stable-diffusion"]


def _accept_our_models(module: ModuleType) -> None:
    """Teach diffusers' pipelines that a model of ours is of the type whose subclass it is.

    And give them a scheduler of their own, for Stable Diffusion's change what they are given.
    """
    stock = module.DiffusionPipeline.__dict__["_get_signature_types"].__func__

    def with_our_models(cls: type) -> dict[str, tuple[Any, ...]]:
        return {name: (*types, *_our_subclasses(types)) for name, types in stock(cls).items()}

    stock_from_pipe = module.DiffusionPipeline.__dict__["from_pipe"].__func__

    def from_pipe(cls: type, pipeline: Any, **kwargs: Any) -> Any:
        scheduler, ours = getattr(pipeline, "scheduler", None), [_is_ours(type(pipeline)), _is_ours(cls)]
        if scheduler is not None and ours == [True, False]:
            kwargs.setdefault("scheduler", type(scheduler).from_config(scheduler.config))
        return stock_from_pipe(cls, pipeline, **kwargs)

    module.DiffusionPipeline._get_signature_types = classmethod(with_our_models)
    module.DiffusionPipeline.from_pipe = classmethod(wraps(stock_from_pipe)(from_pipe))


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == LIBRARY


def _our_subclasses(types: Iterable[Any]) -> list[type]:
    """Classes of this package, of those imported so far, that derive from one of the types."""
    pending, found = [each for each in types if isinstance(each, type) and each is not object], []
    while pending:
        below = type.__subclasses__(pending.pop())
        pending += below
        found += [each for each in below if _is_ours(each)]
    return found
