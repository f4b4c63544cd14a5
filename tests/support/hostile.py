"""What can be wrong with a checkpoint, each as a function that spoils a folder.

A pipeline's folder is spoiled in its denoiser, its autoencoder where it has none; a model's in itself.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
EXPLODED = "exploded"
"""A file that is there if code of a checkpoint was run."""

Spoil = Callable[[Path], None]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def network(folder: Path) -> Path:
    """The folder of the network that is spoiled."""
    return next((folder / name for name in ("unet", "vae") if (folder / name).is_dir()), folder)


def edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def config(**values: Any) -> Spoil:
    return lambda folder: edit(network(folder) / "config.json", **values)


def config_text(text: str | bytes) -> Spoil:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (network(folder) / "config.json").write_bytes(content) and None


def component_config(part: str, file: str, **values: Any) -> Spoil:
    return lambda folder: edit(folder / part / file, **values)


def index(**values: Any) -> Spoil:
    return lambda folder: edit(folder / "model_index.json", **values)


def component(*pair: Any) -> Spoil:
    """Another library and class for the network."""
    return lambda folder: edit(folder / "model_index.json", **{network(folder).name: list(pair)})


def pickle_in_place_of_weights(folder: Path) -> None:
    (network(folder) / WEIGHTS).unlink()
    pickle_beside_weights(folder)


def pickle_beside_weights(folder: Path) -> None:
    path = network(folder) / "diffusion_pytorch_model.bin"
    path.write_bytes(pickle.dumps(Bomb(folder / EXPLODED)))


def link_out(name: str) -> Spoil:
    """A file of the network becomes a link to one outside."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        shutil.move(network(folder) / name, outside)
        (network(folder) / name).symlink_to(outside)

    return spoil


def link_in_a_ring(folder: Path) -> None:
    path = network(folder) / WEIGHTS
    path.unlink()
    path.symlink_to(path.name)


def shards(weight_map: Any, keep: bool = False) -> Spoil:
    """An index of shards; without `keep` in the place of the weights."""

    def spoil(folder: Path) -> None:
        path = network(folder)
        outside = folder.parent / "stolen.safetensors"
        shutil.copy(path / WEIGHTS, outside)
        if not keep:
            (path / WEIGHTS).unlink()
        climbing = os.path.relpath(outside, path)
        content = weight_map if isinstance(weight_map, str) else json.dumps(weight_map)
        (path / INDEX).write_text(content.replace("CLIMBING", climbing))

    return spoil


def weights(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Spoil:
    """Change the tensors, given the first one's name."""

    def spoil(folder: Path) -> None:
        (path,) = network(folder).glob("*.safetensors")
        tensors = load_file(path)
        change(tensors, min(tensors))
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def fill(value: float) -> Spoil:
    def change(tensors: dict[str, torch.Tensor], key: str) -> None:
        tensors[key].flatten()[0] = value

    return weights(change)


def reshape(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = torch.zeros(*tensors[key].shape, 2)


def cut(length: int) -> Spoil:
    """Keep the first bytes, or all but the last."""

    def spoil(folder: Path) -> None:
        path = network(folder) / WEIGHTS
        path.write_bytes(path.read_bytes()[:length])

    return spoil


def header(text: str, length: int | None = None) -> Spoil:
    """Weights of a header, which may lie about its length, and nothing else."""
    content = (len(text) if length is None else length).to_bytes(8, "little") + text.encode()
    return lambda folder: (network(folder) / WEIGHTS).write_bytes(content) and None


def tensor_header(**values: Any) -> Spoil:
    return header(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 0], **values}}))


def code_of_a_tokenizer(folder: Path) -> None:
    code = f"open({str(folder / EXPLODED)!r}, 'w')\n\n\nclass Evil:\n    pass\n"
    (folder / "tokenizer" / "evil.py").write_text(code)
    auto = {"AutoTokenizer": ["evil.Evil", None]}
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map=auto, tokenizer_class="Evil")


def code_of_a_pipeline(folder: Path) -> None:
    code = f"open({str(folder / EXPLODED)!r}, 'w')\n\n\nclass Evil:\n    pass\n"
    for path in (folder / "evil.py", folder / "pipeline.py", network(folder) / "evil.py"):
        path.write_text(code)
    edit(folder / "model_index.json", _class_name=["evil.pipeline", "Evil"])
