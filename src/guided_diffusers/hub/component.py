"""A component by the name that a configuration gives: a folder, a shipped checkpoint, a Hub repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from guided_diffusers.hub.entry_point import LIBRARY
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.store.checkpoints import component_source, pick_component
from guided_diffusers.store.safety import check_complete, refused_in_one_line

Model = TypeVar("Model", bound=ModelMixin)


def find_component(name: str, component: str, classes: Sequence[str] = ()) -> dict[str, str]:
    """What `from_pretrained` needs to load a component, as keyword arguments.

    Args:
        name: As `component_source` takes it; a whole pipeline stands for its component. On the Hub,
            `owner/name/component` names one.
        component: The usual name of such a component in a pipeline: "vae", "unet".
        classes: Names of its classes, for a pipeline that has it under another name.

    Raises:
        ValueError: A pipeline without such a component, or with several; the message names what it has.
    """
    source = component_source(name, component, classes)
    whole = {"pretrained_model_name_or_path": source}
    if Path(source).is_dir():
        return whole
    if source.count("/") == 2 and all(source.split("/")):
        repository, _, folder = source.rpartition("/")
        return {"pretrained_model_name_or_path": repository, "subfolder": folder}
    try:
        hf_hub_download(source, "config.json")
        return whole
    except EntryNotFoundError:
        pass
    except Exception:  # `from_pretrained` asks again, and says what is wrong
        return whole
    try:
        index = hf_hub_download(source, "model_index.json")
    except Exception:
        return whole
    return {**whole, "subfolder": pick_component(index, source, component, classes)}


class _Config(ConfigMixin):
    config_name = "config.json"


def class_of(where: dict[str, str]) -> Any:
    """The class by which a component says that it was saved; None where it says nothing."""
    name = where["pretrained_model_name_or_path"]
    with hub_errors(name), refused_in_one_line(name):
        return _Config.load_config(**where).get("_class_name")


def load_network(cls: type[Model], name: str, component: str) -> Model:
    """A network of diffusers from safetensors, whose weights are those of its class.

    Args:
        cls: The network's class of diffusers; one of ours that is derived from it will do too.
        name: See `find_component`.
        component: See `find_component`.

    Raises:
        ValueError: It is of another class.
        OSError: It cannot be loaded; in one line.
    """
    ours = (each for each in cls.__subclasses__() if each.__module__.startswith(f"{LIBRARY}."))
    classes = {each.__name__: each for each in (cls, *ours)}
    where = find_component(name, component, tuple(classes))
    kind = class_of(where) or cls.__name__
    if kind not in classes:
        raise ValueError(f"{name} is of class {kind}; allowed: {', '.join(classes)}")
    return load_whole(classes[kind], where, name)


def stock_class(network: ModelMixin) -> type[ModelMixin]:
    """The class of diffusers that a network is of, or derived from; its own where there is none."""
    kinds = (each for each in type(network).__mro__ if each.__module__.startswith("diffusers."))
    return next(kinds, type(network))


def load_whole(cls: type[Model], where: dict[str, str], name: str) -> Model:
    """A network of diffusers from safetensors; OSError in one line where its weights are not all there.

    Args:
        cls: The network's class.
        where: Of `find_component`.
        name: What an error calls it.
    """
    with hub_errors(name), refused_in_one_line(name):
        network = cls.from_pretrained(**where, use_safetensors=True)
        folder = Path(where["pretrained_model_name_or_path"], where.get("subfolder", ""))
        check_complete(network, folder, name, None)
    return network
