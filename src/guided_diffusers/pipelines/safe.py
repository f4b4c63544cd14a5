"""Pipelines that keep their weights in safetensors and refuse what could run code or is not whole."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from guided_diffusers.core.checks import shown
from guided_diffusers.hub.entry_point import LIBRARY, plain_class_name
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.hub.pull import check_snapshot
from guided_diffusers.hub.sharing import PUSH_ARGUMENTS, push_to_hub
from guided_diffusers.models.transformers_models import check_fitting, check_vocabulary
from guided_diffusers.store.safety import (
    COMPONENTS,
    CheckpointError,
    check_checkpoint,
    check_complete,
    check_finite,
    check_model_index,
    check_no_adapter,
    check_schedule,
    components_of,
    read_json,
    refused_in_one_line,
)
from guided_diffusers.store.weight_files import superseding

logger = logging.get_logger(__name__)

OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments of from_pretrained about where a repository is found."""
_GUIDED_BY = {
    "PAG": (
        "perturbed-attention guidance (pag_scale)",
        "add AutoGuidance(views.identity_attention(pipeline.unet), 1 + pag_scale) to guidance=",
    ),
    "SAG": ("self-attention guidance (sag_scale)", "use diffusers' pipeline for it"),
}
"""Guidance that pipelines of diffusers have in their code, with nothing in the components that says so."""


class SafePipeline(DiffusionPipeline):
    """A DiffusionPipeline that saves safetensors only, loads nothing else, and pushes in one commit.

    A checkpoint whose components it has no place for is refused: its images would be other ones.
    """

    _uses_all_components = True
    push_to_hub = push_to_hub

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As DiffusionPipeline.save_pretrained; `safe_serialization=False` is ignored with a warning.

        Weights of the same variant that an earlier save left there are replaced, in shards or whole.

        Raises:
            ValueError: An adapter is switched on, under which weights have names that no loader knows.
        """
        positional = dict(
            zip(("safe_serialization", "variant", "max_shard_size", "push_to_hub"), args, strict=False)
        )
        kwargs = {**positional, **kwargs}
        if not kwargs.pop("safe_serialization", True):
            logger.warning("safe_serialization=False is ignored: weights are always saved as safetensors")
        push = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if push and name in kwargs}
        networks = {n: part for n, part in self.components.items() if isinstance(part, torch.nn.Module)}
        for name, network in networks.items():
            check_no_adapter(network.state_dict(), name)
        for component in self.components.values():
            forget_calls(component)
        with superseding([Path(save_directory, name) for name in networks], kwargs.get("variant")):
            super().save_pretrained(save_directory, safe_serialization=True, **kwargs)
        if push:
            saving = {name: kwargs[name] for name in ("variant", "max_shard_size") if name in kwargs}
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **saving, **pushing})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As DiffusionPipeline.from_pretrained, from safetensors only.

        A component of the checkpoint that this pipeline has no place for is left out where it is given as
        None.

        Raises:
            OSError: A component that this pipeline has no place for; a folder or repository without
                safetensors for one of its components, with a file missing, a path or a link that leaves it, a
                class outside diffusers, transformers and this package, a configuration that its weights
                cannot fill or that names code, or weights that do not fit, are not whole or not finite; in
                one line.
            HubError: A repository that is not there, or cannot be read; in one line.
        """
        if kwargs.get("use_safetensors") is False:
            logger.warning("use_safetensors=False is ignored: pickles are refused")
        kwargs["use_safetensors"] = True
        where = str(pretrained_model_name_or_path)
        given = {name for name, value in kwargs.items() if name in cls._components()}
        code, variant = bool(kwargs.get("trust_remote_code")), kwargs.get("variant")
        with hub_errors(where, kwargs.get("revision")), refused_in_one_line(where):
            folder = Path(pretrained_model_name_or_path)
            if folder.is_dir():
                path = folder / cls.config_name
                index = read_json(path) if path.is_file() else {}
            else:
                index = cls.load_config(where, **{key: kwargs[key] for key in OF_THE_HUB if key in kwargs})
            wanted = {name: value for name, value in index.items() if name not in kwargs}
            check_model_index(wanted, where, wanted if code else ())
            left_out = cls._leave_out(where, index, kwargs)
            if not folder.is_dir():
                folder = Path(cls.download(where, **kwargs))
                check_snapshot(
                    where, folder, components_of(wanted).keys() - left_out, kwargs.get("cache_dir")
                )
            check_checkpoint(folder, given | left_out, code, variant or "")
            pipeline = super().from_pretrained(folder, **kwargs)
            for name, component in pipeline.components.items():
                if name not in given:
                    _check_kind(component, f"{where}, {name}", name)
                    check_complete(component, folder / name, f"{where}, {name}", variant)
                    check_fitting(component, folder / name, f"{where}, {name}", variant)
                    check_finite(component, f"{where}, {name}")
                    check_schedule(component, f"{where}, {name}")
            pipeline._check_unet()
        cls._tell_of_guidance(where, plain_class_name(index))
        pipeline.register_to_config(_name_or_path=where)
        return pipeline

    def _check_unet(self) -> None:
        """Raise ValueError where this pipeline cannot run one of its networks; a subclass says which."""

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """As DiffusionPipeline.from_pipe; components are taken over by their names, whatever their classes.

        Args:
            pipeline: Whose components and configuration are taken over.
            kwargs: Components and configuration in the place of its own. A component that this pipeline has
                no place for is left out where it is given as None.

        Raises:
            ValueError: A component that this pipeline has no place for, or lacks.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            raise ValueError(f"pipeline is {shown(pipeline)}; allowed: one that from_pretrained has loaded")
        parts = {name: part for name, part in pipeline.components.items() if part is not None}
        index = {name: [type(part).__module__, type(part).__name__] for name, part in parts.items()}
        where = f"the {type(pipeline).__name__}"
        cls._leave_out(where, {**index, "_class_name": type(pipeline).__name__}, kwargs)
        taken = {name: part for name, part in parts.items() if name in cls._components()}
        made = super().from_pipe(pipeline, **{**taken, **kwargs})
        made._check_unet()
        cls._tell_of_guidance(where, type(pipeline).__name__)
        return made

    @classmethod
    def _tell_of_guidance(cls, where: str, saved_by: str) -> None:
        """Log a warning where the pipeline that saved a checkpoint guides it as this one does not."""
        for word, (guidance, remedy) in _GUIDED_BY.items():
            if cls._uses_all_components and word in saved_by:
                logger.warning(
                    f"{where} was saved by {saved_by}, which draws with {guidance}; {cls.__name__} draws "
                    f"without: {remedy}"
                )

    @classmethod
    def _leave_out(cls, where: str, index: Mapping[str, Any], kwargs: dict[str, Any]) -> set[str]:
        """The components of a checkpoint that are left out: those given as None, which go from `kwargs`.

        Raises:
            CheckpointError: Another one that this pipeline has no place for, of the checkpoint or given.
        """
        unknown = {n: pair[1] for n, pair in components_of(index).items() if n not in cls._components()}
        for name, value in kwargs.items():
            if isinstance(value, torch.nn.Module) and name not in cls._components():
                raise CheckpointError(f"{name} is given, for which {cls.__name__} has no place")
        dropped = [name for name in unknown if name not in kwargs]
        for name in unknown:
            kwargs.pop(name, None)
        if dropped and cls._uses_all_components:
            saved_by = plain_class_name(index)
            home = next((lib for lib in (LIBRARY, "diffusers") if saved_by in dir(import_module(lib))), "")
            remedy = f"use {home}.{saved_by}" if home and saved_by != cls.__name__ else "use what saved it"
            parts = " and ".join(f"{name} ({unknown[name]})" for name in dropped)
            raise CheckpointError(
                f"{where} ({saved_by}) has {parts}, for which {cls.__name__} has no place, and the images "
                f"would be other ones without: {remedy}; or give "
                f"{', '.join(f'{name}=None' for name in dropped)} to leave out what is not needed"
            )
        return set(unknown)

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
    kind = kinds.get(re.sub(r"^low_res_|_\d$", "", name), torch.nn.Module)
    if component is not None and not isinstance(component, kind):
        raise OSError(f"{where} is a {type(component).__name__}; allowed: a {kind.__name__}")
    if isinstance(component, PreTrainedTokenizerBase):
        check_vocabulary(component, where)


def forget_calls(component: Any) -> None:
    """A tokenizer keeps the padding and truncation of its last call, and would save them as its own."""
    backend = getattr(component, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
