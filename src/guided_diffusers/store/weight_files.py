"""Files of weights: which of them loading opens, what their headers say, which of them a save supersedes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_BASES = ("diffusion_pytorch_model", "model")
"""What diffusers' and transformers' loaders call a network's weights."""
_SHARD = r"(-\d+-of-\d+)?"
_IS_SHARD = re.compile(r"-\d+-of-\d+\.")
_ASIDE = ".aside"
_WEIGHTS = re.compile(
    rf"(?P<base>[^.]+?){_SHARD}(\.(?P<variant>\w+))?{_SHARD}\.safetensors"
    r"((\.(?P<old>\w+))?\.index(\.(?P<indexed>\w+))?\.json)?"
)


def pickles_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the pickled weights in a local folder; empty if there is no such folder."""
    path = Path(folder)
    return sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_SUFFIXES) if path.is_dir() else []


def weights_kind(name: str) -> tuple[str, str] | None:
    """The base and the variant of a file of weights or of its index, such as ("model", "fp16")."""
    match = _WEIGHTS.fullmatch(Path(name).name)
    return match and (match["base"], match["variant"] or match["indexed"] or match["old"] or "")


def weights_read(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors and indices of shards in a component's folder that loading it opens.

    Others lie there unread: those of another variant, and those of names that no loader looks for.

    Args:
        folder: The folder.
        variant: Which weights are loaded, such as "fp16", where the folder has them; "" are the plain ones.
            None gives every file, whatever its name.
    """
    if variant is None:
        return sorted(folder.glob("*.safetensors*"))
    kinds = _kinds(folder)
    wanted = variant if variant in {kind[1] for kind in kinds.values()} else ""
    return [path for path, kind in kinds.items() if kind[1] == wanted]


@contextmanager
def superseding(folders: Iterable[Path], variant: str | None = None) -> Iterator[None]:
    """Save networks within this context, and what their weights take the place of is removed.

    An earlier save in shards leaves an index that loaders prefer to a whole file, whose shards are gone; a
    whole file of an earlier save lies unread beside new shards. Weights of other variants stay; the libraries
    remove their shards, which are out of reach meanwhile.

    Args:
        folders: Where networks are saved, a folder each; they need not be there yet.
        variant: Of the weights that are saved.
    """
    folders, variant = list(folders), variant or ""
    there = {path: kind[1] for folder in folders for path, kind in _kinds(folder).items()}
    indices = {
        path: path.read_bytes() for path, of in there.items() if of == variant and path.suffix == ".json"
    }
    others = [path for path, of in there.items() if of != variant and _IS_SHARD.search(path.name)]
    for path in indices:
        path.unlink()
    for path in others:
        path.rename(path.with_name(f"{path.name}{_ASIDE}"))
    try:
        yield
    except BaseException:
        for path, content in indices.items():
            path.write_bytes(content)
        raise
    finally:
        for path in others:
            path.with_name(f"{path.name}{_ASIDE}").rename(path)
    for folder in folders:
        files = [path for path, kind in _kinds(folder).items() if kind[1] == variant]
        indices = [path for path in files if path.suffix == ".json"]
        shards = {shard for path in indices for shard in json.loads(path.read_text())["weight_map"].values()}
        for path in set(files).difference(indices):
            if path.name not in shards if indices else _IS_SHARD.search(path.name):
                path.unlink()


def _kinds(folder: Path) -> dict[Path, tuple[str, str]]:
    """The files of a network's weights and their indices, each with its kind."""
    kinds = {path: weights_kind(path.name) for path in sorted(folder.glob("*.safetensors*"))}
    return {path: kind for path, kind in kinds.items() if kind and kind[0] in _BASES}


def weight_bytes(network: nn.Module) -> Iterator[tuple[str, Tensor, bytes]]:
    """Name, tensor and bytes of each weight of a network, in the order of their names."""
    import torch

    for name, tensor in sorted(network.state_dict().items()):
        # NumPy has no bfloat16
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        yield name, tensor, plain.numpy().tobytes()


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
            sides = [side for value in tensors for side in value["shape"]]
            if not all(type(side) is int and side >= 0 for side in sides):
                raise ValueError("a shape that is none")
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise OSError(f"{path} is no safetensors file: its header does not read") from error
    if whole != size:
        raise OSError(f"{path} has {size} bytes and should have {whole}: cut short")
    return header
