"""What the JSON files of a checkpoint may say: plain values, of a size that its weights can have.

A configuration decides what is built before any weight is read: how many layers, how wide, and where the
rest comes from. One that asks for a billion layers would build until memory ends; one that is a JSON string
is taken for the name of another repository and fetched; one that names code or a kernel asks for that to be
run. Checked before anything is built: each file is an object, its numbers are numbers, no count is larger
than what the weights beside it can fill, and nothing names code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guided_diffusers.core.checks import shown

CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Files of a component that loaders read for what to build; those of them that are there are checked."""
MAX_TRAIN_TIMESTEPS = 1_000_000
_ALWAYS_ALLOWED = 65_536  # ids of tokens and sizes of images that a small network may well name
_CODE = ("auto_map", "custom_pipelines")
_CLASSES = ("_class_name", "tokenizer_class")
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; OSError in one line where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise OSError(f"{path} is no JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise OSError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise OSError(f"{path} holds a JSON {type(value).__name__} where an object should be")
    return value


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


def check_configs(path: Path, tensors: int = 0, values: int = 0, code: bool = False) -> None:
    """Check a JSON file that says what to build; one that is not there passes.

    Args:
        path: One of CONFIGS in a component's folder, or a pipeline's model_index.json.
        tensors: How many tensors the weights beside it have; 0 where there are none.
        values: How many numbers these hold.
        code: What names code passes, because the caller trusts it or does not load the folder.

    Raises:
        OSError: In one line, for the first thing that is wrong.
    """
    if not path.is_file():
        return
    config = read_json(path)
    if path.name == "tokenizer.json":  # its numbers are ids and scores, as many as there are words
        return
    for key, value in _leaves(config):
        for right, allowed in _rules(path, key, value, tensors, values, code):
            if not right:
                raise OSError(f"{path} has {key} {shown(value)}; allowed: {allowed}")


def _rules(
    path: Path, key: str, value: Any, tensors: int, values: int, code: bool
) -> Iterator[tuple[Any, str]]:
    """What has to be true of a value, and what is allowed where it is not."""
    if key in _CLASSES:
        yield _is_class_name(path, value), "the name of a class"
    if not code:
        yield not (value and key in _CODE), "none: code to run is refused, and this checkpoint needs none"
        plain = value is None or (isinstance(value, str) and value.replace("_", "").isalnum())
        yield plain or key not in _ATTENTION, "a plain name: code from elsewhere is refused"
    if isinstance(value, float):
        yield _is_setting(value, path), "finite numbers"
    if key == "num_train_timesteps":
        yield not _beyond(value, MAX_TRAIN_TIMESTEPS), f"at most {MAX_TRAIN_TIMESTEPS:,}"
    if path.name == "config.json" and tensors:
        yield from _sizes(key, value, tensors, values)


def _sizes(key: str, value: Any, tensors: int, values: int) -> Iterator[tuple[Any, str]]:
    """The rules of what the weights beside a configuration can fill."""
    most = f"at most {tensors}, as its weights have tensors: refused"
    if "layers" in key:
        yield not _beyond(value, tensors), most
    if "block" in key and isinstance(value, list):
        yield len(value) <= tensors, most
    if not key.endswith("_step"):  # of training: no size
        largest = max(values, _ALWAYS_ALLOWED)
        yield not _beyond(value, largest), f"at most {largest:,}, for its weights hold {values:,}: refused"
    if ("layers" in key or "channels" in key) and isinstance(value, int):
        yield value >= 0, "0 or more"
    if key == "sample_size":
        yield value is None or isinstance(value, list) or _is_count(value), "a positive integer, or two"


def _is_setting(value: float, path: Path) -> bool:
    """Infinity is a bound that bounds nothing, such as a DPM-Solver's `lambda_min_clipped`: no network's."""
    return math.isfinite(value) or (math.isinf(value) and path.name != "config.json")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_class_name(path: Path, value: Any) -> bool:
    """A class is a plain name; of a pipeline with an entry point, the file's and the class's."""
    pair = path.name == "model_index.json" and isinstance(value, list) and len(value) == 2
    parts = value if pair else [value]
    return value is None or all(isinstance(part, str) and part.isidentifier() for part in parts)


def _beyond(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value > limit


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value with the key it lies under, lists and mappings as well as what they hold."""
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        key, value = pending.pop()
        yield key, value
        if isinstance(value, Mapping):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(key, item) for item in value]
