"""Checkpoints that ship inside the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from guided_diffusers.store.hashes import file_hash, json_hash

_FOLDER = Path(__file__).parents[1] / "checkpoints_data"


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


def fingerprint(folder: str | Path) -> str:
    """What identifies the components of a pipeline's folder: a hash over their weights and configurations.

    Left out is what a call may replace (scheduler, default guidance), weights of a variant, and the words of
    the training captions, which decide no pixel. Of a cascade that is of its first stage; of the others the
    scheduler and the defaults count, for no call of the whole replaces them.

    Args:
        folder: A folder in diffusers' format.

    Returns:
        "sha256:" and 64 hexadecimal digits.

    Raises:
        OSError: There is no model_index.json, or a file cannot be read.
    """
    from guided_diffusers.store.config_safety import components_of
    from guided_diffusers.store.weight_files import weights_kind

    folder = Path(folder)
    components = components_of(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    total = hashlib.sha256()
    first = min(components, default="")
    for path in sorted(path for name in components for path in _files_of(folder / name)):
        kind, (part, *inside) = weights_kind(path.name), path.relative_to(folder).parts
        replaced = part == "scheduler" or (part == first and inside[0] in ("scheduler", "model_index.json"))
        if replaced or path.suffix not in _DECIDING or (kind and kind[1]):
            continue
        total.update(f"{path.relative_to(folder).as_posix()} {_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _files_of(part: Path) -> Iterator[Path]:
    """The files of a component; of a cascade's stage those of its components too."""
    return part.rglob("*.*") if (part / "model_index.json").is_file() else part.glob("*.*")


def _digest(path: Path) -> str:
    """A file's hash; of a tokenizer's configuration that has captions' words, that of the rest."""
    if path.name == "model_index.json":
        index = json.loads(path.read_text(encoding="utf-8"))
        plain = {name: value for name, value in index.items() if not name.startswith("_")}
        return json_hash(plain)
    if path.name == "tokenizer_config.json":
        from guided_diffusers.store.config_safety import read_json

        config = read_json(path)
        if config.pop("caption_words", None) is not None:
            # As transformers writes it, so that a file that had no words keeps its hash.
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            return hashlib.sha256(text.encode()).hexdigest()
    return file_hash(path)


_DECIDING = (".json", ".safetensors", ".txt", ".model")
"""Endings of the files that decide what a component computes: weights, configurations, vocabularies."""


def component_source(name: str, component: str | None = None, classes: Sequence[str] = ()) -> str:
    """Where a component's `from_pretrained` finds it, by the name that a configuration gives.

    Args:
        name: A folder; else `<shipped checkpoint>/<component>`, such as "fashion-32/vae"; else a Hub id. They
            are sought in this order.
        component: Of a whole pipeline's folder, shipped or not, take this component, or
        classes: the only one of these classes.

    Returns:
        The folder, or the name as it is.

    Raises:
        ValueError: A checkpoint has no such component; the message names those it has.
    """
    checkpoint, _, part = name.partition("/")
    folder = Path(name).expanduser()
    if not folder.is_dir() and checkpoint in shipped():
        folder = _FOLDER / checkpoint
        if part or component is None:
            components = sorted(path.parent.name for path in folder.glob("*/config.json"))
            if part not in components:
                allowed = ", ".join(f"{checkpoint}/{known}" for known in components)
                raise ValueError(f"{name!r} is no component of the shipped {checkpoint}; allowed: {allowed}")
            return str(folder / part)
    index = folder / "model_index.json"
    if component is not None and index.is_file() and not (folder / "config.json").is_file():
        return str(folder / pick_component(index, name, component, classes))
    return str(folder) if name.startswith("~") or folder.parent == _FOLDER else name


def pipeline_source(name: str) -> str:
    """Where a pipeline's `from_pretrained` finds it: a shipped checkpoint's folder, or the name as it is."""
    return str(pretrained(name)) if name in shipped() and not Path(name).is_dir() else name


def pick_component(index: str | Path, where: str, component: str, classes: Sequence[str]) -> str:
    """The component of a model_index.json that has this name, or alone is of one of these classes.

    Raises:
        ValueError: There is none, or several; the message names what `where` has.
    """
    from guided_diffusers.store.config_safety import components_of, read_json

    found = {name: pair[1] for name, pair in components_of(read_json(Path(index))).items()}
    if component in found:
        return component
    named = [name for name, kind in found.items() if kind in classes]
    if len(named) != 1:
        has = ", ".join(f"{where}/{name} ({kind})" for name, kind in found.items())
        raise ValueError(f"{where} has {'several' if named else 'no'} {component}; name one of: {has}")
    return named[0]
