"""A training configuration: one frozen dataclass, filled from YAML and the command line, saved as JSON.

A script declares its own dataclass and composes it with the shared one::

    @dataclass(frozen=True, kw_only=True)
    class MyConfig:
        training: TrainingConfig
        widths: tuple[int, ...] = option((64, 128), "channels of each level")

    config = parse_config(MyConfig, sys.argv[1:])

`--config file.yaml` is read first; then `--training.learning_rate 1e-3` (or `--learning_rate 1e-3`, since
that name is unique) overrides it. A field of type `dict` is open: `--unet.layers_per_block 2` sets one key of
it.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from guided_diffusers.core.checks import as_number, shown

Config = TypeVar("Config")
_POSITIVE = (
    "num_images batch_size gradient_accumulation learning_rate keep_checkpoints log_every_images "
    "push_every".split()
)
_NOT_NEGATIVE = (
    "prefetch_batches warmup_images weight_decay max_grad_norm ema_half_life_images ema_ramp_up "
    "checkpoint_every_images export_every_images validate_every_images push_wait_seconds"
).split()


def option(default: Any, description: str) -> Any:
    """A dataclass field with a default and the description that `--help` prints."""
    return field(default=default, metadata={"help": description})


def arguments(description: str, *classes: type) -> Any:
    """A field for a model's arguments, which are those of `classes`: another key is refused, and named."""
    return field(default_factory=dict, metadata={"help": description, "arguments_of": classes})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training script shares. Durations are in images, so a change of batch size leaves them."""

    output_dir: str = field(metadata={"help": "the run's folder: config.json, log.jsonl, checkpoints, final"})
    seed: int = option(0, "all randomness is a function of the seed and the position in training")
    num_images: int = option(1_000_000, "images to see in all")
    stop_at_images: int | None = option(None, "stop here with a checkpoint, as if interrupted; resume later")
    batch_size: int = option(64, "images a step, over all processes and accumulation parts")
    gradient_accumulation: int = option(1, "parts of a process's batch, one in memory at a time")
    prefetch_batches: int = option(2, "batches a background thread prepares ahead; 0 prepares them in line")
    learning_rate: float = option(1e-3, "peak learning rate")
    warmup_images: int = option(10_000, "images over which the learning rate rises linearly from 0")
    learning_rate_schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = option(
        "cosine", "after the warm-up; cosine and linear end at 0, inverse_sqrt decays from 10 warm-ups on"
    )
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay")
    betas: tuple[float, float] = option((0.9, 0.99), "AdamW's decay rates")
    max_grad_norm: float = option(1.0, "clip each optimizer's gradient to this norm; 0 only measures it")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option(
        "auto",
        "autocast dtype; weights stay float32. auto: the faster of no and, where the task allows it, bf16, "
        "timed at the start; no in a run of fewer than 10,000 images",
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory")
    channels_last: Literal["auto", True, False] = option(
        "auto", "channels-last convolutions; auto: the faster, timed in the same way, or false"
    )
    ema_half_life_images: float = option(50_000.0, "half-life of the averaged weights; 0: the last weights")
    ema_ramp_up: float = option(0.05, "half-life at most this fraction of the images seen so far")
    snapshot_fractions: tuple[float, ...] = option(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2), "keep the averaged weights of these points of training (weak networks)"
    )
    checkpoint_every_images: int = option(50_000, "write a checkpoint to resume from; 0: only at the end")
    keep_checkpoints: int = option(2, "keep the newest of them")
    export_every_images: int = option(0, "write the averaged model in from_pretrained format; 0: at the end")
    validate_every_images: int = option(50_000, "draw or measure with the averaged weights; 0: never")
    log_every_images: int = option(5_000, "write a record to log.jsonl")
    push_to_hub: str | None = option(None, "owner/name: push exports to the Hub while training; null: do not")
    push_every: int = option(1, "push every so many exports; the last is always pushed")
    push_wait_seconds: float = option(600.0, "at the end, wait at most so long for the last push")
    report_to: tuple[str, ...] = option((), "accelerate's trackers to report to besides log.jsonl")

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field, what was given and what is allowed.
        """
        for name in _POSITIVE + _NOT_NEGATIVE:
            value = as_number(getattr(self, name))
            right = value is not None and (value > 0 or (value == 0 and name in _NOT_NEGATIVE))
            if not right or not math.isfinite(value):
                allowed = "0 or more" if name in _NOT_NEGATIVE else "positive"
                raise ValueError(f"{name} must be {allowed}, got {shown(getattr(self, name))}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if not all(0 < fraction <= 1 for fraction in self.snapshot_fractions):
            raise ValueError(f"snapshot_fractions must lie in (0, 1], got {self.snapshot_fractions}")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size must be a multiple of gradient_accumulation, got {self.batch_size} and "
                f"{self.gradient_accumulation}"
            )


def parse_config(cls: type[Config], argv: Sequence[str]) -> Config:
    """Read a script's configuration from `--config file.yaml` and overrides.

    `--dry_run` prints the resolved configuration as JSON and exits with status 0. A bad key or value prints a
    message that names it (and the nearest known key) and exits with status 2.

    Args:
        cls: a dataclass; nested dataclasses are allowed.
        argv: the command line without the program's name.
    """
    parser = _parser(cls)
    arguments, rest = parser.parse_known_args(list(argv))
    overrides = vars(arguments)
    path, dry_run = overrides.pop("config"), overrides.pop("dry_run")
    try:
        tree = _read_yaml(path) if path else {}
        overrides |= _open_overrides(cls, rest)
        config = build_config(cls, tree, overrides)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if dry_run:
        print(to_json(config))
        parser.exit(0)
    return config


def build_config(cls: type[Config], tree: dict[str, Any], overrides: dict[str, Any] | None = None) -> Config:
    """Build a dataclass from a nested mapping and `{"dotted.key": value}` overrides.

    Raises:
        ValueError: for an unknown key (named with the nearest known one), a missing one, or a value of the
            wrong type or range.
    """
    if not isinstance(tree, dict) or not isinstance(overrides, dict | None):
        raise ValueError(f"tree is {shown(tree)}, overrides {shown(overrides)}; allowed: mappings of keys")
    tree = {key: _plain(key, value) for key, value in tree.items()}
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        node = tree
        for parent in parents:
            child = node.get(parent)
            node[parent] = node = child if isinstance(child, dict) else {}
        node[last] = _parsed(dotted, value) if isinstance(value, str) else value
    return _build(cls, tree, "")


def check_arguments(given: Iterable[str], path: str, *classes: Any) -> None:
    """Raise ValueError for the first of `given` that is an argument of none of the classes.

    Args:
        given: Names of arguments.
        path: The key they are under.
        classes: Their constructors' signatures are read.
    """
    known = list(dict.fromkeys(name for cls in classes for name in inspect.signature(cls).parameters))
    for name in given:
        if name not in known:
            owner = " or ".join(cls.__name__ for cls in classes)
            text = _unknown(f"{path}.{name}", [f"{path}.{other}" for other in known])
            raise ValueError(f"{text} (arguments of {owner})")


def _plain(key: str, value: Any) -> Any:
    """A deep copy that is plain data."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{key} is {shown(value)}, which is no plain data: {error}") from error


def _parsed(key: str, text: str) -> Any:
    """A value of the command line, written as in YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{key} is {shown(text)}, which does not read as YAML: {reason}") from error
    except (ValueError, RecursionError) as error:  # a date that is none, lists without end
        raise ValueError(f"{key} is {shown(text)}, which does not read as YAML: {error}") from error


def to_json(config: Any) -> str:
    """The configuration as indented JSON, in the order of its fields."""
    return json.dumps(asdict(config), indent=2)


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Field]]:
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        kind, name = hints[item.name], prefix + item.name
        if is_dataclass(kind):
            yield from _leaves(kind, name + ".")
        else:
            yield name, kind, item


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of a configuration's keys, by their dotted names, where they are plain values."""
    return {name: item.default for name, _, item in _leaves(cls) if item.default is not MISSING}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help)\n")


def _parser(cls: type) -> argparse.ArgumentParser:
    parser = _Parser(
        usage="%(prog)s [--config FILE.yaml] [--dry_run] [--help] [--key value ...]",
        description=cls.__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file with any of the keys below, nested")
    parser.add_argument("--dry_run", action="store_true", help="print the configuration as JSON and exit")
    leaves = list(_leaves(cls))
    short = [name.rpartition(".")[2] for name, _, _ in leaves]
    for (name, kind, item), last in zip(leaves, short, strict=True):
        names = [f"--{name}"]
        if last != name and short.count(last) == 1 and last not in ("config", "dry_run"):
            names.append(f"--{last}")
        default = "required" if item.default is MISSING and item.default_factory is MISSING else item.default
        text = f"{item.metadata.get('help', '')} (default: {default})".replace("%", "%%")
        flag = {"nargs": "?", "const": "true"} if kind is bool or True in typing.get_args(kind) else {}
        flag |= {"dest": name, "default": argparse.SUPPRESS, "metavar": _name(kind), "help": text}
        parser.add_argument(*names, **flag)
    return parser


def _open_overrides(cls: type, rest: list[str]) -> dict[str, str]:
    """Overrides such as `--unet.layers_per_block 2`, whose parent is a field of type dict."""
    leaves = {name: kind for name, kind, _ in _leaves(cls)}
    overrides, words = {}, iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        is_open = any(key.startswith(name + ".") and _is_dict(kind) for name, kind in leaves.items())
        if not word.startswith("--") or not is_open:
            raise ValueError(_unknown(key, list(leaves) + [name.rpartition(".")[2] for name in leaves]))
        value = value if equals else next(words, None)
        if value is None:
            raise ValueError(f"--{key} needs a value")
        overrides[key] = value
    return overrides


def _unknown(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}: did you mean {nearest[0]!r}?" if nearest else f"unknown key {key!r}"


def _read_yaml(path: str) -> dict[str, Any]:
    tree = _parsed(path, Path(path).read_text()) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys at the top, got {type(tree).__name__}")
    return tree


def _build(cls: type, tree: dict[str, Any], prefix: str) -> Any:
    hints, known = typing.get_type_hints(cls), {item.name: item for item in fields(cls)}
    for key in tree:
        if key not in known:
            raise ValueError(_unknown(prefix + str(key), [prefix + name for name in known]))
    values = {}
    for name, item in known.items():
        kind, path = hints[name], prefix + name
        if is_dataclass(kind) and (name in tree or item.default is MISSING):
            child = tree.get(name, {})
            if not isinstance(child, dict):
                raise ValueError(f"{path} must be a mapping of keys, got {child!r}")
            values[name] = _build(kind, child, path + ".")
        elif name in tree:
            values[name] = _coerce(tree[name], kind, path)
            if classes := item.metadata.get("arguments_of"):
                check_arguments(values[name], path, *classes)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{path} is required: set it in the YAML file or by --{path}")
    return cls(**values)


def _coerce(value: Any, kind: Any, path: str) -> Any:
    """A value of YAML or the command line as the field's type, or a ValueError that names the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(part for part in arguments if part is not type(None)), path)
    if origin is Literal:
        if any(type(value) is type(allowed) and value == allowed for allowed in arguments):
            return value
        if value is False and "no" in arguments:  # YAML reads a bare `no` as False
            return "no"
    if origin is tuple and isinstance(value, (list, tuple)):
        open_ended = arguments[1:] == (...,)
        if open_ended or len(value) == len(arguments):
            parts = [arguments[0]] * len(value) if open_ended else arguments
            return tuple(
                _coerce(item, part, f"{path}: each item") for item, part in zip(value, parts, strict=True)
            )
    if _is_dict(kind) and isinstance(value, dict):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and (kind is float or (math.isfinite(number) and number == int(number))):
            return kind(number)
    raise ValueError(f"{path} must be {_name(kind)}, got {shown(value)}")


def _number(value: Any) -> float | int | None:
    try:
        number = float(value)  # YAML reads 1e-3 as a string
        return value if isinstance(value, (int, float)) else number
    except (TypeError, ValueError, OverflowError):
        return None


def _is_dict(kind: Any) -> bool:
    return dict in (kind, typing.get_origin(kind))


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(json.dumps(value).strip('"') for value in typing.get_args(kind)) + "}"
    plain = getattr(kind, "__name__", None) if typing.get_origin(kind) is None else None
    return plain or str(kind).replace("typing.", "")
