"""What a checkpoint's folder may hold: files that are read as data and never run.

A checkpoint comes from anywhere, and loading must not be a way in. Checked before anything is read: no
pickles (loading one runs code), no path or link that leaves the folder, no class outside the libraries that
hold components, no configuration that its weights cannot fill (`config_safety`). Checked afterwards: no
weight is missing, none is NaN or infinite.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from guided_diffusers.core.checks import one_line
from guided_diffusers.store.config_safety import CONFIGS, check_configs, components_of, read_json
from guided_diffusers.store.weight_files import pickles_in, safetensors_header, tensor_sizes, weights_read

_WITHOUT_WEIGHTS = ("scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
"""What the folders of components that are no networks hold."""
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
COMPONENTS = "guided_diffusers.store.components"
"""Where this package's own loaders find its classes: see that module."""


def check_path(name: Any, where: Any) -> None:
    """Raise OSError for a path that is not one inside its folder: absolute, or with `..`."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ("..",)
    leaves = ".." in parts or name.startswith("/") or "\\" in name or "\0" in name
    _refuse(leaves, f"{where} names the path {name!r}, which leaves the checkpoint's folder")


def _refuse(wrong: Any, told: str) -> None:
    if wrong:
        raise OSError(f"{told}: refused")


def check_checkpoint(
    folder: str | os.PathLike[str],
    skip: Collection[str] = (),
    code: bool = False,
    variant: str | None = None,
) -> None:
    """Check a checkpoint's folder, a pipeline's or a model's, before anything of it is read.

    Of a pipeline's folder that is what model_index.json names: what else lies there is not opened.

    Args:
        folder: The folder.
        skip: Components that the caller brings itself, or leaves out.
        code: Classes may come from files of the checkpoint: the caller trusts it, or does not load it.
        variant: As of `check_component`.

    Raises:
        OSError: See `check_model_index` and `check_component`.
    """
    folder = Path(folder)
    path = folder / "model_index.json"
    check_links(folder)
    if not path.is_file():
        for part in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
            check_component(part, code, variant)
        return
    index = {name: value for name, value in read_json(path).items() if name not in skip}
    pairs = components_of(index)
    own = {name for name, pair in pairs.items() if code and (folder / name / f"{pair[0]}.py").is_file()}
    check_model_index(index, path, own)
    check_configs(path, code=code)
    for name in pairs:  # a loader seeks a component without a folder in the pipeline's
        if (folder / name / "model_index.json").is_file():  # a pipeline that is a stage of this one
            check_checkpoint(folder / name, (), code, variant)
            continue
        check_component(folder / name if (folder / name).is_dir() else folder, code, variant)


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
        leaves = not any(path.resolve().is_relative_to(root) for root in roots)
        told = f"{path} is a link to {os.readlink(path)}, which leaves the checkpoint's folder"
        _refuse(leaves, f"{told} (put a copy there if you trust it)")


def check_component(folder: str | os.PathLike[str], code: bool = False, variant: str | None = None) -> None:
    """Check one component's folder; a folder that is not there passes.

    Args:
        folder: The folder.
        code: As of `check_checkpoint`.
        variant: Which weights will be loaded, such as "fp16", "" for the plain ones: others are not looked
            at. None looks at every file.

    Raises:
        OSError: Pickled weights and no safetensors, an index of shards that names a file outside the folder
            or one that is not there, or a configuration that is refused: see `config_safety`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    weights = weights_read(folder, variant)
    pickles = pickles_in(folder)
    if pickles and not weights and not any((folder / name).is_file() for name in _WITHOUT_WEIGHTS):
        raise OSError(
            f"{folder} has pickled weights ({', '.join(pickles)}) and no safetensors: pickles are refused, "
            "because loading one runs code. If you trust it, convert it: torch.load(file, "
            "weights_only=True), then safetensors.torch.save_file(weights, "
            "'diffusion_pytorch_model.safetensors')"
        )
    for path in weights:
        if path.suffix == ".json":
            _check_shards(path)
    vocabularies = [path for kind in _VOCABULARIES for path in folder.glob(kind)]
    if (folder / "tokenizer_config.json").is_file() and not vocabularies:
        raise OSError(f"{folder} has a tokenizer without a vocabulary: the checkpoint is not whole")
    sizes = [size for path in weights if path.suffix == ".safetensors" for size in tensor_sizes(path)]
    for name in CONFIGS:
        check_configs(folder / name, len(sizes), sum(sizes), code)


def _check_shards(path: Path) -> None:
    """Check an index of shards: each a safetensors file beside it."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise OSError(f"{path} has no weight_map: it is no index of shards")
    for shard in sorted(set(map(str, shards.values()))):
        check_path(shard, path)
        if not shard.endswith(".safetensors"):
            raise OSError(f"{path} names the shard {shard!r}; allowed: safetensors")
        if not (path.parent / shard).is_file():
            whole = path.with_name(path.name.partition(".index")[0]).is_file()
            remedy = ": if the weights that lie there in one file are newer, delete the index" * whole
            raise OSError(
                f"{path} names the shard {shard!r}, which is not there: the checkpoint is not whole{remedy}"
            )


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
        told = f"{where} names the component {name!r}, which is no name but a path"
        _refuse(not name.isidentifier(), told)
        if name not in code and not _is_component_class(library, class_name):
            raise OSError(
                f"{where} says that {name!r} is {library}.{class_name}; allowed: models, schedulers, "
                "tokenizers and processors of diffusers, transformers and guided_diffusers"
            )


def _is_component_class(library: str, class_name: str) -> bool:
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, simple_get_class_obj

    library = "guided_diffusers" if library == COMPONENTS else library
    beside_its_pipeline = hasattr(pipelines, library)  # such as a safety checker
    if not (class_name.isidentifier() and library.replace("_", "a").replace(".", "a").isalnum()):
        return False
    if library not in LOADABLE_CLASSES and not beside_its_pipeline:
        return False
    try:
        found = simple_get_class_obj(library, class_name)  # by its new name, where diffusers knows one
    except AttributeError:
        return False
    if beside_its_pipeline:
        return isinstance(found, type)
    module = import_module(library)
    bases = [getattr(module, base, None) for base in LOADABLE_CLASSES[library]]
    return isinstance(found, type) and issubclass(found, tuple(base for base in bases if base is not None))


def check_finite(module: Any, name: str) -> None:
    """Raise OSError if a weight of a network is NaN or infinite; anything that is no network passes."""
    if not isinstance(module, nn.Module):
        return
    for key, weight in module.named_parameters():
        if not weight.is_meta and weight.is_floating_point():
            count = int((~torch.isfinite(weight)).sum())
            _refuse(count, f"{name}: the weight {key!r} has {count} values that are NaN or infinite")


def check_schedule(scheduler: Any, name: str) -> None:
    """Raise OSError if a scheduler's tables are no process's: NaN, or an abar that leaves [0, 1]."""
    for key in ("betas", "alphas_cumprod", "sigmas", "timesteps"):
        table = getattr(scheduler, key, None)
        wrong = isinstance(table, torch.Tensor) and table.isnan().any()
        _refuse(wrong, f"{name}: its configuration makes {key} that are no numbers (NaN)")
    abar = getattr(scheduler, "alphas_cumprod", None)
    wrong = isinstance(abar, torch.Tensor) and not ((abar >= 0) & (abar <= 1)).all()
    _refuse(wrong, f"{name}: its betas lead outside those of a process, from 0 to 1")


def check_complete(module: Any, folder: Path, name: str, variant: str | None = None) -> None:
    """Raise OSError if the safetensors of a network's folder are not the weights of the network.

    Loaders fill what is missing with random numbers or with nothing, and a warning. transformers renames
    weights on loading, so of its networks numbers of values are compared and not names.
    """
    from diffusers import ModelMixin

    files = [path for path in weights_read(folder, variant or "") if path.suffix == ".safetensors"]
    if not isinstance(module, nn.Module) or not files:
        return
    found = {key: value for path in files for key, value in safetensors_header(path).items()}
    found.pop("__metadata__", None)
    check_no_adapter(found, name)
    has = sum(math.prod(value["shape"]) for value in found.values())
    wanted = sum(weight.numel() for weight in module.parameters())
    told = f"{name}: its files hold {has:,} values, the network has {wanted:,}: not whole"
    _refuse(has < wanted, told)
    missing = [key for key, _ in module.named_parameters() if key not in found]
    known = isinstance(module, ModelMixin) and not any(map(_OLD_ATTENTION.search, found))
    first, other = ", ".join(map(repr, missing[:1])), min(found, default=None)
    told = f"its files have no {first}, one of {len(missing)} weights of the network that are not there"
    _refuse(known and missing, f"{name}: {told}; they have {other!r}, for example: not its weights")


def check_no_adapter(weights: Iterable[str], name: str) -> None:
    """Raise CheckpointError where weights have the names that they have while a LoRA adapter is on."""
    renamed = next((key for key in weights if ".base_layer." in key), None)
    if renamed is not None:
        raise CheckpointError(
            f"{name} has an adapter (LoRA) switched on, under which its weights have names that no loader "
            f"knows ({renamed!r}): where it was made, call fuse_lora() on it, then unload_lora(), and save "
            "it with the adapter in its weights; or unload_lora() alone, and save it without"
        )


_OLD_ATTENTION = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")
"""Names of weights that diffusers' loader changes."""


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
    line = one_line(text)
    return line if len(line) <= _SHORT else f"{line[:_SHORT]}..."


_LONGEST, _SHORT = 600, 300
_DOES_NOT_FIT = (
    "size mismatch",
    "expected shape",
    "mismatched",
    "ignore_mismatched_sizes",
    "Error(s) in loading",
)
