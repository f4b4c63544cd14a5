"""Checkpoints that ship inside the package."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "checkpoints_data"


def shipped() -> list[str]:
    """Names of the checkpoints that ship inside the package, in alphabetical order."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))


def pretrained(name: str) -> Path:
    """The folder of a checkpoint that ships inside the package, for any `from_pretrained`.

    Args:
        name: For example "fashion-32": text-to-image on Fashion-MNIST, 32x32.

    Returns:
        A folder in diffusers' format, to read and not to write.

    Raises:
        TypeError: `name` is not a string.
        ValueError: No such checkpoint ships.

    Example:
        `TextToImagePipeline.from_pretrained(pretrained("fashion-32"))`
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, one of {shipped()}, but is {name!r} ({type(name).__name__})")
    if name not in shipped():
        raise ValueError(
            f"name={name!r} is no checkpoint that ships with the package; these are: {', '.join(shipped())}. "
            "A folder or a Hub repository goes to from_pretrained directly."
        )
    return _FOLDER / name
