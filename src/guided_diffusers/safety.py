"""What a checkpoint's folder may hold: files that are read as data and never run.

A checkpoint comes from anywhere, and loading must not be a way in. Checked before anything is read: no
pickles (loading one runs code), no path or link that leaves the folder, no class outside the libraries that
hold components, no configuration that its weights cannot fill (`config_safety`). Checked afterwards: no
weight is missing, none is NaN or infinite.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from guided_diffusers.config_safety import check_configs, read_json

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_WEIGHTS = re.compile(
    r"(?P<base>[^.]+?)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors(\.index(\.(?P<indexed>\w+))?\.json)?"
)
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
COMPONENTS = "guided_diffusers.components"
"""Where this package's own loaders find its classes: see that module."""


def pickles_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the pickled weights in a local folder; empty if there is no such folder."""
    path = Path(folder)
    return sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_SUFFIXES) if path.is_dir() else []


def check_path(name: Any, where: Any) -> None:
    """Raise OSError for a path that is not one inside its folder: absolute, or with `..`."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ("..",)
    if ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
        raise OSError(f"{where} names the path {name!r}, which leaves the checkpoint's folder: refused")


def check_checkpoint(folder: str | os.PathLike[str], skip: Collection[str] = (), code: bool = False) -> None:
    """Check a checkpoint's folder, a pipeline's or a model's, before anything of it is read.

    Args:
        folder: The folder.
        skip: Components that the caller brings itself.
        code: Classes may come from files of the checkpoint: the caller trusts it, or does not load it.

    Raises:
        OSError: See `check_model_index` and `check_component`.
    """
    folder = Path(folder)
    path = folder / "model_index.json"
    check_links(folder)
    if path.is_file():
        index = {name: value for name, value in read_json(path).items() if name not in skip}
        pairs = components_of(index)
        own = {name for name, pair in pairs.items() if code and (folder / name / f"{pair[0]}.py").is_file()}
        check_model_index(index, path, own)
    for part in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
        if part.name not in skip:
            check_component(part, code)


def check_links(folder: Path) -> None:
    """Raise OSError for a symbolic link that leaves a checkpoint's folder.

    The Hub's cache is made of links: from `snapshots/<commit>` of a repository's folder to its `blobs`, and
    from those to the `blobs` that all repositories of the cache share.
    """
    roots = [folder.resolve()]
    for parent in roots[0].parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            roots += [parent.parent, parent.parents[1] / "blobs"]
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink()):
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise OSError(
                f"{path} is a link to {os.readlink(path)}, which leaves the checkpoint's folder: refused; "
                "put a copy there if you trust it"
            )


def check_component(folder: str | os.PathLike[str], code: bool = False) -> None:
    """Check one component's folder; a folder that is not there passes.

    Args:
        folder: The folder.
        code: As of `check_checkpoint`.

    Raises:
        OSError: Pickled weights and no safetensors, an index of shards that names a file outside the folder
            or one that is not there, or a configuration that is refused: see `config_safety`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    pickles = pickles_in(folder)
    if pickles and not any(folder.glob("*.safetensors*")):
        raise OSError(
            f"{folder} has pickled weights ({', '.join(pickles)}) and no safetensors: pickles are refused, "
            "because loading one runs code. If you trust it, convert it: torch.load(file, "
            "weights_only=True), then safetensors.torch.save_file(weights, "
            "'diffusion_pytorch_model.safetensors')"
        )
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        shards = read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise OSError(f"{path} has no weight_map: it is no index of shards")
        for shard in sorted(set(map(str, shards.values()))):
            check_path(shard, path)
            if not shard.endswith(".safetensors"):
                raise OSError(f"{path} names the shard {shard!r}; allowed: safetensors")
            if not (folder / shard).is_file():
                raise OSError(
                    f"{path} names the shard {shard!r}, which is not there: the checkpoint is not whole"
                )
    vocabularies = [path for kind in _VOCABULARIES for path in folder.glob(kind)]
    if (folder / "tokenizer_config.json").is_file() and not vocabularies:
        raise OSError(f"{folder} has a tokenizer without a vocabulary: the checkpoint is not whole")
    sizes = [size for path in folder.glob("*.safetensors") for size in tensor_sizes(path)]
    check_configs(folder, len(sizes), sum(sizes), code)


def components_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each component that model_index.json says there is, by name."""
    return {
        name: tuple(value)
        for name, value in index.items()
        if not name.startswith("_")
        and isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
    }


def check_model_index(index: Mapping[str, Any], where: Any, code: Collection[str] = ()) -> None:
    """Check model_index.json: names of components, their libraries and classes.

    Args:
        index: Its content.
        where: What an error calls it.
        code: Components whose class may come from a file of the checkpoint, because the caller trusts it.

    Raises:
        OSError: A component's name that is a path, or a class outside the libraries that hold components.
    """
    for name, (library, class_name) in components_of(index).items():
        if not name.isidentifier():
            raise OSError(f"{where} names the component {name!r}, which is no name but a path: refused")
        if name not in code and not _is_component_class(library, class_name):
            raise OSError(
                f"{where} says that {name!r} is {library}.{class_name}; allowed: models, schedulers, "
                "tokenizers and processors of diffusers, transformers and guided_diffusers"
            )


def _is_component_class(library: str, class_name: str) -> bool:
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    library = "guided_diffusers" if library == COMPONENTS else library
    if not (class_name.isidentifier() and library.replace("_", "a").replace(".", "a").isalnum()):
        return False
    if hasattr(pipelines, library):  # a safety checker lives beside its pipeline
        return isinstance(getattr(getattr(pipelines, library), class_name, None), type)
    if library not in LOADABLE_CLASSES:
        return False
    module = import_module(library)
    found = getattr(module, class_name, None)
    bases = [getattr(module, base, None) for base in LOADABLE_CLASSES[library]]
    return isinstance(found, type) and issubclass(found, tuple(base for base in bases if base is not None))


def check_finite(module: Any, name: str) -> None:
    """Raise OSError if a weight of a network is NaN or infinite; anything that is no network passes."""
    if not isinstance(module, nn.Module):
        return
    for key, weight in module.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or bool(torch.isfinite(weight).all()):
            continue
        count = int((~torch.isfinite(weight)).sum())
        raise OSError(f"{name}: the weight {key!r} has {count} values that are NaN or infinite: refused")


def check_schedule(scheduler: Any, name: str) -> None:
    """Raise OSError if a scheduler's table of abar, where it has one, leaves [0, 1]: by betas above 1."""
    abar = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(abar, torch.Tensor) and not bool(((abar >= 0) & (abar <= 1)).all()):
        raise OSError(f"{name}: its betas lead outside those of a process, from 0 to 1: refused")


def check_complete(module: Any, folder: Path, name: str, variant: str | None = None) -> None:
    """Raise OSError if the safetensors of a network's folder hold fewer values than the network.

    Loaders fill what is missing with random numbers and a warning. Names change between versions of the
    libraries, so numbers of values are compared and not names.
    """
    if not isinstance(module, nn.Module) or not any(folder.glob("*.safetensors")):
        return
    found: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        kind = weights_kind(path.name)
        count = sum(tensor_sizes(path))
        found[kind[1] if kind else ""] = found.get(kind[1] if kind else "", 0) + count
    has = found.get(variant or "", max(found.values()))
    wanted = sum(weight.numel() for weight in module.parameters())
    if has < wanted:
        raise OSError(
            f"{name}: its files hold {has:,} values, the network has {wanted:,}: not whole, refused"
        )


def weights_kind(name: str) -> tuple[str, str] | None:
    """The base and the variant of a file of weights or of its index, such as ("model", "fp16")."""
    match = _WEIGHTS.fullmatch(Path(name).name)
    return match and (match["base"], match["variant"] or match["indexed"] or "")


def tensor_sizes(path: Path) -> list[int]:
    """How many numbers each tensor of a safetensors file has; OSError as of `safetensors_header`."""
    header = safetensors_header(path)
    return [math.prod(value["shape"]) for key, value in header.items() if key != "__metadata__"]


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: for each tensor its dtype, shape and place.

    Raises:
        OSError: It is none, or it is cut short.
    """
    if not path.is_file():
        raise OSError(f"{path} is no file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise OSError(f"{path} is no safetensors file, or it is cut short")
        try:
            header = json.loads(file.read(length))
            tensors = [value for key, value in header.items() if key != "__metadata__"]
            ends = [value["data_offsets"][1] for value in tensors]
            sound = all(type(side) is int and side >= 0 for value in tensors for side in value["shape"])
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise OSError(f"{path} is no safetensors file: its header does not read") from error
    if not sound:
        raise OSError(f"{path} is no safetensors file: its header has a shape that is none")
    if whole != size:
        raise OSError(f"{path} has {size} bytes and should have {whole}: cut short")
    return header


class CheckpointError(OSError, ValueError):
    """A checkpoint that cannot be loaded, in one line; `__cause__` is the loader's own error."""


@contextmanager
def refused_in_one_line(where: Any) -> Iterator[None]:
    """Turn whatever a loader raises at a checkpoint that it cannot use into an OSError of one line.

    Loaders fail on a hostile configuration wherever its values are first used, with errors of every kind;
    those about shapes have hundreds of lines. An OSError that is one line already passes as it is.
    """
    try:
        yield
    except OSError as error:
        text = str(error)
        if "\n" not in text and len(text) <= _LONGEST:
            raise
        raise OSError(_short(text)) from error
    except Exception as error:
        text = _short(error)
        if isinstance(error, SafetensorError) or any(word in text for word in _DOES_NOT_FIT):
            raise OSError(f"{where}: the weights do not fit the network: {text}") from error
        if isinstance(error, MemoryError) or "can't allocate memory" in text:
            text = "its configuration asks for more memory than there is"
        kind = type(error).__name__
        raise CheckpointError(f"{where} cannot be loaded ({kind}): {text or 'no reason given'}") from error


def _short(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _SHORT else f"{line[:_SHORT]}..."


_LONGEST, _SHORT = 600, 300
_DOES_NOT_FIT = (
    "size mismatch",
    "expected shape",
    "mismatched",
    "ignore_mismatched_sizes",
    "Error(s) in loading",
)
