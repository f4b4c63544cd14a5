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
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from guided_diffusers.core.checks import check_that, shown
from guided_diffusers.core.declared import (
    Amount,
    Count,
    Declared,
    Positive,
    Whole,
    Within,
    allowed,
    build,
    has_default,
    kinds_of,
    unknown,
)
from guided_diffusers.store.reading import read_mapping, reading_as, yaml_of

Config = TypeVar("Config")
_Decay = Annotated[float, Within(0, 1, "[)")]


def option(default: Any, description: str) -> Any:
    """A dataclass field with a default and the description that `--help` prints."""
    return field(default=default, metadata={"help": description})


def arguments(description: str, *classes: type) -> Any:
    """A field for a model's arguments, which are those of `classes`: another key is refused, and named."""
    check = partial(check_arguments, classes=classes)
    return field(default_factory=dict, metadata={"help": description, "check": check})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Declared):
    """What every training script shares. Durations are in images, so a change of batch size leaves them."""

    output_dir: str = field(metadata={"help": "the run's folder: config.json, log.jsonl, checkpoints, final"})
    seed: int = option(0, "all randomness is a function of the seed and the position in training")
    num_images: Count = option(1_000_000, "images to see in all")
    stop_at_images: int | None = option(None, "stop here with a checkpoint, as if interrupted; resume later")
    batch_size: Count = option(64, "images a step, over all processes and accumulation parts")
    gradient_accumulation: Count = option(1, "parts of a process's batch, one in memory at a time")
    prefetch_batches: Whole = option(2, "batches a background thread prepares ahead; 0 prepares them in line")
    learning_rate: Positive = option(1e-3, "peak learning rate")
    warmup_images: Whole = option(10_000, "images over which the learning rate rises linearly from 0")
    learning_rate_schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = option(
        "cosine", "after the warm-up; cosine and linear end at 0, inverse_sqrt decays from 10 warm-ups on"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = option(
        "adamw", "adamw_8bit: bitsandbytes', whose state is 2 bytes a parameter instead of 8"
    )
    weight_decay: Amount = option(0.01, "AdamW's decoupled weight decay")
    betas: tuple[_Decay, _Decay] = option((0.9, 0.99), "AdamW's decay rates")
    max_grad_norm: Amount = option(1.0, "clip each optimizer's gradient to this norm; 0 only measures it")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option(
        "auto",
        "autocast dtype; weights stay float32. auto: the faster of no and, where the task allows it, bf16, "
        "timed at the start; no in a run of fewer than 10,000 images",
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory")
    channels_last: Literal["auto", True, False] = option(
        "auto", "channels-last convolutions; auto: the faster, timed in the same way, or false"
    )
    sharding: Literal["none", "gradients", "parameters"] = option(
        "none",
        "split over processes: nothing; gradients, optimizer and averages; or weights too, gathered block by "
        "block (accelerate's FSDP2 says it as well)",
    )
    timeout_minutes: Positive = option(30.0, "a process that others wait for so long is taken for dead")
    attention: Literal["auto", "fused", "plain"] = option(
        "auto", "of diffusers' networks: torch's fused one, or plain products; auto: the faster on a CPU"
    )
    compile: bool = option(False, "torch.compile every trained network, in place: minutes at the start")
    ema_half_life_images: Amount = option(50_000.0, "half-life of the averaged weights; 0: the last weights")
    ema_ramp_up: Amount = option(0.05, "half-life at most this fraction of the images seen so far")
    snapshot_fractions: tuple[Annotated[float, Within(0, 1, "(]")], ...] = option(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2), "keep the averaged weights of these points of training (weak networks)"
    )
    posthoc_ema: Whole = option(
        0, "evenly spaced points at which averages are kept, for any length afterwards (32 is good); 0: none"
    )
    posthoc_dtype: Literal["float16", "float32"] = option("float16", "of what is kept of them")
    checkpoint_every_images: Whole = option(50_000, "write a checkpoint to resume from; 0: only at the end")
    keep_checkpoints: Count = option(2, "keep the newest of them")
    export_every_images: Whole = option(
        0, "write the averaged model in from_pretrained format; 0: at the end"
    )
    validate_every_images: Whole = option(50_000, "draw or measure with the averaged weights; 0: never")
    log_every_images: Count = option(5_000, "write a record to log.jsonl")
    push_to_hub: str | None = option(None, "owner/name: push exports to the Hub while training; null: do not")
    push_every: Count = option(1, "push every so many exports; the last is always pushed")
    push_wait_seconds: Amount = option(600.0, "at the end, wait at most so long for the last push")
    report_to: tuple[str, ...] = option((), "accelerate's trackers to report to besides log.jsonl")

    def __post_init__(self) -> None:
        """Check the ranges, and that parts are of one size; ValueError names the field."""
        super().__post_init__()
        allowed = f"a multiple of gradient_accumulation, {self.gradient_accumulation}"
        check_that(self.batch_size % self.gradient_accumulation == 0, "batch_size", self.batch_size, allowed)


def parse_config(cls: type[Config], argv: Sequence[str], ignore_others: bool = False) -> Config:
    """Read a script's configuration from `--config file.yaml` and overrides.

    `--dry_run` prints the resolved configuration as JSON and exits with status 0. A bad key or value prints a
    message that names it (and the nearest known key) and exits with status 2.

    Args:
        cls: a dataclass; nested dataclasses are allowed.
        argv: the command line without the program's name.
        ignore_others: the file is another script's: of its keys those that this one has count.
    """
    parser = _parser(cls)
    arguments, rest = parser.parse_known_args(list(argv))
    overrides = vars(arguments)
    path, dry_run = overrides.pop("config"), overrides.pop("dry_run")
    try:
        tree = read_mapping(path) if path else {}
        if ignore_others:
            tree = {name: part for name, part in tree.items() if name in kinds_of(cls)}
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
    for name, value in (("tree", tree), ("overrides", overrides or {})):
        check_that(isinstance(value, dict), name, value, "a mapping of keys")
    tree = {key: _plain(key, value) for key, value in tree.items()}
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        node = tree
        for parent in parents:
            child = node.get(parent)
            node[parent] = node = child if isinstance(child, dict) else {}
        node[last] = yaml_of(value, f"{dotted} is {shown(value)}, which") if isinstance(value, str) else value
    return build(cls, tree, text=True)


def check_arguments(given: Iterable[str], path: str, classes: Sequence[Any]) -> None:
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
            text = unknown(f"{path}.{name}", [f"{path}.{other}" for other in known])
            raise ValueError(f"{text} (arguments of {owner})")


def _plain(key: str, value: Any) -> Any:
    """A deep copy that is plain data."""
    with reading_as("plain data", f"{key} is {shown(value)}, which", TypeError):
        return json.loads(json.dumps(value))


def to_json(config: Any) -> str:
    """The configuration as indented JSON, in the order of its fields."""
    return json.dumps(asdict(config), indent=2)


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Field]]:
    """The fields that hold values: their dotted names and annotations."""
    hints = kinds_of(cls)
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
        default = item.default if has_default(item) else "required"
        limits = f"; allowed: {allowed(kind)}" if "Range(" in str(kind) else ""
        text = f"{item.metadata.get('help', '')} (default: {default}{limits})".replace("%", "%%")
        flag = {"nargs": "?", "const": "true"} if kind is bool or True in typing.get_args(kind) else {}
        flag |= {"dest": name, "default": argparse.SUPPRESS, "metavar": _name(kind), "help": text}
        parser.add_argument(*names, **flag)
    return parser


def _open_overrides(cls: type, rest: list[str]) -> dict[str, str]:
    """Overrides such as `--unet.layers_per_block 2`, whose parent is a field of type dict."""
    leaves = {name: typing.get_origin(kind) or kind for name, kind, _ in _leaves(cls)}
    overrides, words = {}, iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        is_open = any(key.startswith(f"{name}.") and kind is dict for name, kind in leaves.items())
        if not word.startswith("--") or not is_open:
            raise ValueError(unknown(key, list(leaves) + [name.rpartition(".")[2] for name in leaves]))
        value = value if equals else next(words, None)
        if value is None:
            raise ValueError(f"--{key} needs a value")
        overrides[key] = value
    return overrides


def _name(kind: Any) -> str:
    """An annotation as `--help` shows it where a value is to stand, without its range."""
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(json.dumps(value).strip('"') for value in typing.get_args(kind)) + "}"
    plain = re.sub(r"typing\.Annotated\[(\w+), Range\(.*?\)\]", r"\1", str(kind)).replace("typing.", "")
    return getattr(kind, "__name__", plain) if typing.get_origin(kind) is None else plain
