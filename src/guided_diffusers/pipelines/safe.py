"""Pipelines that keep their weights in safetensors and refuse what could run code or is not whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from guided_diffusers.hub.entry_point import LIBRARY, plain_class_name
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.hub.pull import check_snapshot
from guided_diffusers.hub.sharing import PUSH_ARGUMENTS, PushMixin
from guided_diffusers.safety import (
    COMPONENTS,
    check_checkpoint,
    check_complete,
    check_finite,
    check_schedule,
    components_of,
    read_json,
    refused_in_one_line,
)
from guided_diffusers.transformers_models import check_fitting

logger = logging.get_logger(__name__)


class SafePipeline(PushMixin, DiffusionPipeline):
    """A DiffusionPipeline that saves safetensors only, loads nothing else, and pushes in one commit."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As DiffusionPipeline.save_pretrained; `safe_serialization=False` is ignored with a warning."""
        positional = dict(
            zip(("safe_serialization", "variant", "max_shard_size", "push_to_hub"), args, strict=False)
        )
        kwargs = {**positional, **kwargs}
        if not kwargs.pop("safe_serialization", True):
            logger.warning("safe_serialization=False is ignored: weights are always saved as safetensors")
        push = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if push and name in kwargs}
        for component in self.components.values():
            _forget_calls(component)
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)
        if push:
            saving = {name: kwargs[name] for name in ("variant", "max_shard_size") if name in kwargs}
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **saving, **pushing})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As DiffusionPipeline.from_pretrained, from safetensors only.

        Raises:
            OSError: A folder or repository without safetensors for one of its components, with a file
                missing, a path or a link that leaves it, a class outside diffusers, transformers and this
                package, a configuration that its weights cannot fill or that names code, or weights that do
                not fit, are not whole or not finite; in one line.
            HubError: A repository that is not there, or cannot be read; in one line.
        """
        if kwargs.get("use_safetensors") is False:
            logger.warning("use_safetensors=False is ignored: pickles are refused")
        kwargs["use_safetensors"] = True
        where = str(pretrained_model_name_or_path)
        given = {name for name, value in kwargs.items() if name in cls._components()}
        code = bool(kwargs.get("trust_remote_code"))
        with hub_errors(where, kwargs.get("revision")), refused_in_one_line(where):
            folder = Path(pretrained_model_name_or_path)
            if not folder.is_dir():
                folder = Path(cls.download(where, **kwargs))
                wanted = components_of(read_json(folder / cls.config_name)).keys() - given
                check_snapshot(where, folder, wanted, kwargs.get("cache_dir"))
            check_checkpoint(folder, skip=given, code=code)
            pipeline = super().from_pretrained(folder, **kwargs)
            for name, component in pipeline.components.items():
                if name not in given:
                    _check_kind(component, f"{where}, {name}", name)
                    check_complete(component, folder / name, f"{where}, {name}", kwargs.get("variant"))
                    check_fitting(component, folder / name, f"{where}, {name}", kwargs.get("variant"))
                    check_finite(component, f"{where}, {name}")
                    check_schedule(component, f"{where}, {name}")
            pipeline._check_unet()
        pipeline.register_to_config(_name_or_path=where)
        return pipeline

    def _check_unet(self) -> None:
        """Raise ValueError where this pipeline cannot run one of its networks; a subclass says which."""

    @classmethod
    def _components(cls) -> set[str]:
        return set(cls._get_signature_keys(cls)[0])

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """model_index.json as this package reads it: without the code that it does not need.

        A checkpoint with an entry point for the generic loader (`hub.entry_point`) names files to run; for a
        class of ours they are not needed.
        """
        index = super()._dict_from_json_file(json_file)
        ours = {
            name: [COMPONENTS, value[1]]
            for name, value in index.items()
            if isinstance(value, list) and len(value) == 2 and value[0] == LIBRARY
        }
        return {**index, **ours, "_class_name": plain_class_name(index)}


def _check_kind(component: Any, where: str, name: str) -> None:
    """Raise OSError for a component that is of another kind than its name says, such as a tokenizer's."""
    kinds = {"scheduler": SchedulerMixin, "tokenizer": PreTrainedTokenizerBase, "feature_extractor": object}
    kind = kinds.get(name, torch.nn.Module)
    if component is not None and not isinstance(component, kind):
        raise OSError(f"{where} is a {type(component).__name__}; allowed: a {kind.__name__}")


def _forget_calls(component: Any) -> None:
    """A tokenizer keeps the padding and truncation of its last call, and would save them as its own."""
    backend = getattr(component, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
