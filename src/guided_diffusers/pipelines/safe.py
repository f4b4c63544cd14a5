"""Pipelines that keep their weights in safetensors and refuse pickles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline
from diffusers.utils import logging

from guided_diffusers.models.safe import pickles_in

logger = logging.get_logger(__name__)


class SafePipeline(DiffusionPipeline):
    """A DiffusionPipeline that saves safetensors only and loads nothing else."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As DiffusionPipeline.save_pretrained; `safe_serialization=False` is ignored with a warning."""
        positional = dict(
            zip(("safe_serialization", "variant", "max_shard_size", "push_to_hub"), args, strict=False)
        )
        kwargs = {**positional, **kwargs}
        if not kwargs.pop("safe_serialization", True):
            logger.warning("safe_serialization=False is ignored: weights are always saved as safetensors")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As DiffusionPipeline.from_pretrained, from safetensors only.

        Raises:
            OSError: A folder or repository without safetensors for one of its components, or with a file
                missing.
        """
        if kwargs.get("use_safetensors") is False:
            logger.warning("use_safetensors=False is ignored: pickles are refused")
        kwargs["use_safetensors"] = True
        _refuse_pickles(Path(pretrained_model_name_or_path), skip={k for k, v in kwargs.items() if v is None})
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)


def _refuse_pickles(folder: Path, skip: set[str]) -> None:
    """Raise OSError for a component of a local folder that has pickled weights and no safetensors."""
    for component in sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in skip):
        pickles = pickles_in(component)
        if pickles and not any(component.glob("*.safetensors")):
            raise OSError(
                f"{component} has pickled weights ({', '.join(pickles)}) and no safetensors: pickles are "
                "refused, because loading one runs code. If you trust it, save it again from diffusers"
            )
