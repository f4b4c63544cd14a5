"""Weights are safetensors: a mixin that never writes a pickle and reads neither one nor what is not whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.hub.sharing import PUSH_ARGUMENTS, push_to_hub
from guided_diffusers.store.safety import (
    check_complete,
    check_component,
    check_finite,
    check_links,
    check_no_adapter,
    refused_in_one_line,
)
from guided_diffusers.store.weight_files import PICKLE_SUFFIXES, pickles_in, superseding, weights_read

__all__ = ["PICKLE_SUFFIXES", "SafeWeightsMixin", "pickles_in"]


class SafeWeightsMixin:
    """Goes before ModelMixin in the bases of a model: saves and loads safetensors only.

    A pickle runs code when it is loaded. So `save_pretrained(safe_serialization=False)` warns and saves
    safetensors all the same, and `from_pretrained` raises OSError where it finds none, whatever
    `use_safetensors` says. It also refuses shards outside the folder, weights that are missing, that have
    other shapes than the network's, or that are NaN or infinite. `push_to_hub` makes one commit.
    """

    push_to_hub = push_to_hub

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As ModelMixin.save_pretrained; `safe_serialization=False` is ignored with a warning.

        Weights of the same variant that an earlier save left there are replaced, in shards or whole. The
        arguments are spelled out because a pipeline hands on only those that it finds in the signature.

        Raises:
            ValueError: An adapter is switched on, under which weights have names that no loader knows.
        """
        if not safe_serialization:
            warnings.warn("safe_serialization=False is ignored: safetensors are saved.", stacklevel=2)
        pushing = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        check_no_adapter(self.state_dict(), type(self).__name__)  # type: ignore[attr-defined]
        with superseding([Path(save_directory)] if is_main_process else [], variant):
            super().save_pretrained(  # type: ignore[misc]
                save_directory,
                is_main_process=is_main_process,
                save_function=save_function,
                variant=variant,
                max_shard_size=max_shard_size,
                **kwargs,
            )
        if push_to_hub:
            saving = {"variant": variant, "max_shard_size": max_shard_size}
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **saving, **pushing})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As ModelMixin.from_pretrained, from safetensors only.

        Raises:
            OSError: No safetensors (names the pickles found instead and says how to convert them), weights
                that are not whole, do not fit, or are not finite, a link that leaves the folder, or a
                configuration that the weights cannot fill or that names code; in one line.
            HubError: A repository that is not there, or cannot be read; in one line.
        """
        if kwargs.get("use_safetensors") is False:
            warnings.warn("use_safetensors=False is ignored: pickles are refused.", stacklevel=2)
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        variant = kwargs.get("variant")
        pickles, has_safetensors = pickles_in(folder), bool(weights_read(folder, variant or ""))
        # In a folder without a pickle diffusers may look for one: it finds none and says what is missing.
        kwargs["use_safetensors"] = None if folder.is_dir() and not pickles else True
        where = str(pretrained_model_name_or_path)
        try:
            with hub_errors(where, kwargs.get("revision")), refused_in_one_line(folder):
                check_links(Path(pretrained_model_name_or_path))
                check_component(folder, variant=variant or "")
                loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
                model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
                check_complete(model, folder, where, variant)
                check_finite(model, where)
        except OSError as error:
            if has_safetensors or not (folder / "config.json").is_file():
                raise
            raise OSError(f"{folder} has a config.json but no weights in safetensors. {error}") from error
        return loaded
