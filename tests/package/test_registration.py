"""What importing the package teaches diffusers' loader; tests/hub loads through it in fresh processes."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, _fetch_class_library_tuple

import guided_diffusers
from guided_diffusers import _registration


def components() -> list[type]:
    """Our public classes that diffusers saves and loads as parts of a pipeline."""
    public = [getattr(guided_diffusers, name) for name in guided_diffusers.__all__]
    classes = [item for item in public if inspect.isclass(item)]
    return [item for item in classes if issubclass(item, (ModelMixin, SchedulerMixin))]


def test_there_are_components():
    names = {component.__name__ for component in components()}
    assert {"GuidedDDIMScheduler", "GuidedDDPMScheduler", "VariationalAutoencoder"} <= names


@pytest.mark.parametrize("component", components(), ids=lambda component: component.__name__)
def test_model_index_names_the_package_and_the_package_has_the_class(component: type):
    assert _fetch_class_library_tuple(component) == ("guided_diffusers", component.__name__)
    assert getattr(guided_diffusers, component.__name__) is component


def test_every_base_class_that_is_registered_is_diffusers_own():
    for name, methods in LOADABLE_CLASSES["guided_diffusers"].items():
        assert getattr(guided_diffusers, name) is getattr(diffusers, name)
        assert methods == ["save_pretrained", "from_pretrained"]


def test_diffusers_finds_our_pipelines_by_name():
    assert diffusers.TextToImagePipeline is guided_diffusers.TextToImagePipeline


def test_diffusers_is_otherwise_as_it_was():
    assert diffusers.DDIMPipeline.__module__.startswith("diffusers.")
    with pytest.raises(AttributeError, match="NoSuchPipeline"):
        diffusers.NoSuchPipeline  # noqa: B018
    assert not hasattr(diffusers, "noise_level")


def test_a_name_of_diffusers_own_is_not_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_registration, "_pipelines", {*_registration._pipelines, "DDPMPipeline"})
    monkeypatch.setattr(guided_diffusers, "DDPMPipeline", "ours", raising=False)
    monkeypatch.delitem(vars(diffusers), "DDPMPipeline", raising=False)
    assert diffusers.DDPMPipeline.__module__.startswith("diffusers.")


def test_registering_again_adds_and_wraps_once():
    before: Any = type(diffusers)
    _registration.register(pipelines=("TextToImagePipeline",))
    assert type(diffusers) is before
