"""Weights are safetensors: a mixin that never writes a pickle and refuses to read one."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Self

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def pickles_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the pickled weights in a local folder; empty if there is no such folder."""
    path = Path(folder)
    return sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_SUFFIXES) if path.is_dir() else []


class SafeWeightsMixin:
    """Goes before ModelMixin in the bases of a model: saves and loads safetensors only.

    A pickle runs code when it is loaded. So `save_pretrained(safe_serialization=False)` warns and saves
    safetensors all the same, and `from_pretrained` raises OSError where it finds none, whatever
    `use_safetensors` says.
    """

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As ModelMixin.save_pretrained; `safe_serialization=False` is ignored with a warning."""
        names = ("is_main_process", "save_function", "safe_serialization")
        kwargs.update(zip(names, args, strict=False))
        if not kwargs.pop("safe_serialization", True):
            warnings.warn("safe_serialization=False is ignored: safetensors are saved.", stacklevel=2)
        super().save_pretrained(save_directory, *args[len(names) :], **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As ModelMixin.from_pretrained, from safetensors only.

        Raises:
            OSError: No safetensors; names the pickles found instead and says how to convert them.
        """
        if kwargs.get("use_safetensors") is False:
            warnings.warn("use_safetensors=False is ignored: pickles are refused.", stacklevel=2)
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        pickles, has_safetensors = pickles_in(folder), any(folder.glob("*.safetensors*"))
        if pickles and not has_safetensors:
            raise OSError(_refusal(folder, pickles))
        # In a folder without a pickle diffusers may look for one: it finds none and says what is missing.
        kwargs["use_safetensors"] = None if folder.is_dir() and not pickles else True
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        except OSError as error:
            if has_safetensors or not (folder / "config.json").is_file():
                raise
            raise OSError(f"{folder} has a config.json but no weights in safetensors. {error}") from error


def _refusal(folder: Path, found: list[str]) -> str:
    return (
        f"{folder} has pickled weights ({', '.join(found)}) and no safetensors; pickles are refused because "
        "loading one runs code. If you trust it, convert it: torch.load(file, weights_only=True), then "
        "safetensors.torch.save_file(weights, 'diffusion_pytorch_model.safetensors')."
    )
