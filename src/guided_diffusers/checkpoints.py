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
        name: "fashion-32", text-to-image on Fashion-MNIST, 32x32; or "emoji-64-vae", an autoencoder of colour
            emoji, 64x64, for VAEPipeline.

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


def component_source(name: str) -> str:
    """Where a component's `from_pretrained` finds it, by the name that a configuration gives.

    Args:
        name: A folder; else `<shipped checkpoint>/<component>`, such as "fashion-32/vae"; else a Hub id. They
            are sought in this order.

    Returns:
        The folder, or the name as it is.

    Raises:
        ValueError: A shipped checkpoint has no such component; the message names those it has.
    """
    checkpoint, _, component = name.partition("/")
    if Path(name).expanduser().is_dir() or checkpoint not in shipped():
        return str(Path(name).expanduser()) if name.startswith("~") else name
    folder = _FOLDER / checkpoint
    components = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if component not in components:
        allowed = ", ".join(f"{checkpoint}/{known}" for known in components)
        raise ValueError(f"{name!r} is no component of the shipped {checkpoint}; allowed: {allowed}")
    return str(folder / component)
