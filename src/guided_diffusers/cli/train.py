"""`guided-diffusers train`: the training scripts, with their configurations, under accelerate.

The scripts and configurations of `training/` are the checkout's own where the package is run from one, and
otherwise those that came with the package, in the folder `_training` beside this one's.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
_PACKAGE = Path(__file__).parents[1]
_NEEDED = {"datasets": "datasets", "yaml": "pyyaml"}
_SECONDS_TO_STOP = 10.0

Script = Annotated[
    str | None,
    typer.Argument(help="Of: autoencoder, text-to-image, unconditional, upsampler, classifier or clip."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--KEY VALUE",
        help="Keys of the configuration, such as --training.num_images 1000; `train SCRIPT -- --help` lists "
        "them. --dry_run prints the configuration and trains nothing.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A YAML file, or the name of one that ships: see --list."),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="How many share a batch.", show_default="one a GPU, else one")
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Train on the CPU though there is a GPU.")]
List = Annotated[bool, typer.Option("--list", help="List the scripts and the configurations that ship.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end; the log to stderr.")]


def train(
    script: Script = None,
    overrides: Overrides = None,
    config: Config = None,
    processes: Processes = None,
    cpu: Cpu = False,
    list_all: List = False,
    json_output: Json = False,
) -> dict[str, Any] | None:
    """Train an autoencoder, a denoiser, a classifier or CLIP.

    A run that was stopped goes on when its command is given again. The run's exit code is this command's. The
    trained model is in the folder `final` of the run's, ready for from_pretrained. Needs the extra `train`.
    """
    if list_all:
        if not json_output:
            typer.echo(listing())
        return {"scripts": sorted(scripts()), "configs": [str(path) for path in configs().values()]}
    path, file = find_script(script), None if config is None else find_config(config)
    check_installed()
    words = [*([] if file is None else ["--config", str(file)]), *(overrides or [])]
    command, environment = launch_command(path, words, processes, cpu)
    dry = "--dry_run" in words
    began = time.monotonic()
    code = run(command, environment, sys.stderr if json_output and not dry else None)
    if code != 0 or dry or not {"--help", "-h"}.isdisjoint(words):
        raise typer.Exit(code)
    return {"script": script, "config": file and str(file), "seconds": round(time.monotonic() - began, 1)} | (
        result(words) if json_output else {}
    )


def precompute(
    out: Annotated[str, typer.Argument(help="The folder of the shards: data.path of the training.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A training's: its data, autoencoder and text count.")
    ] = None,
    processes: Processes = None,
    cpu: Cpu = False,
    json_output: Json = False,
) -> dict[str, Any] | None:
    """Encode data of any size into shards of latents, and with a frozen text encoder of embeddings.

    Every process has its share of the source's files; the same command again goes on. A training reads them
    with --data.path OUT --data.stream true. Needs the extra `train`.
    """
    check_installed()
    file = [] if config is None else ["--config", str(find_config(config))]
    words = [*file, "--output_dir", out, *(overrides or [])]
    command, environment = launch_command(training_folder() / "precompute.py", words, processes, cpu)
    code = run(command, environment, sys.stderr if json_output else None)
    if code != 0:
        raise typer.Exit(code)
    return {"output_dir": out, "shards": len(list(Path(out).glob("*.parquet")))}


def training_folder() -> Path:
    """The scripts: `training/` of the checkout that this is, else what came with the package."""
    checkout = _PACKAGE.parents[1]
    if _PACKAGE == checkout / "src" / "guided_diffusers" and (checkout / "training" / "configs").is_dir():
        return checkout / "training"
    return _PACKAGE / "_training"


def scripts() -> dict[str, Path]:
    """The training scripts by the name that the command line gives them."""
    found = sorted(training_folder().glob("train_*.py"))
    return {path.stem.removeprefix("train_").replace("_", "-"): path for path in found}


def configs() -> dict[str, Path]:
    """The configurations that ship, by name."""
    return {path.stem: path for path in sorted((training_folder() / "configs").glob("*.yaml"))}


def find_script(name: str | None) -> Path:
    """The script of a name, with hyphens or underscores."""
    known = scripts()
    found = known.get((name or "").replace("_", "-"))
    if found is None:
        given = "Missing argument SCRIPT" if name is None else f"{name!r} is no training script"
        raise typer.BadParameter(f"{given}; allowed, in the first place: {', '.join(known)}")
    return found


def find_config(name: str) -> Path:
    """A configuration's file, or the one that ships under this name."""
    known = configs()
    if Path(name).is_file():
        return Path(name)
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    near = difflib.get_close_matches(Path(name).stem, known, n=1, cutoff=0.0)
    hint = f"did you mean {near[0]}? " if near else ""
    raise typer.BadParameter(
        f"{name!r} is no file, and no configuration of that name ships: {hint}`train --list` lists them",
        param_hint="--config",
    )


def listing() -> str:
    """Scripts and configurations, a line each; a configuration with its first comment."""
    lines = [f"{name}" for name in scripts()] + [""]
    width = max(map(len, configs()), default=0)
    for name, path in configs().items():
        text = path.read_text(encoding="utf-8")
        script = re.search(rf"train_(\w+)\.py --config \S*\b{name}\.yaml", text)
        about = text.split("\n", 1)[0].removeprefix("# ") if text.startswith("# ") else ""
        lines.append(f"{name:{width}}  {script[1].replace('_', '-') if script else '':14}  {about}".rstrip())
    return "\n".join(lines)


def check_installed() -> None:
    """Say in one line what the extra `train` brings and is not there.

    Raises:
        OSError: Something is missing.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise OSError(
            f"training needs {' and '.join(missing)}: pip install 'guided-diffusers[train]' brings them"
        )


def launch_command(
    script: Path, words: Sequence[str], processes: int | None, cpu: bool
) -> tuple[list[str], dict[str, str]]:
    """The command that runs a script in so many processes, and its environment.

    One process needs no launcher, and its exit code is then the script's own. Several on GPUs, and whatever
    the user's `accelerate config` says, are for `accelerate launch`; several on CPUs for torchrun, which
    accelerate leaves to MPI.
    """
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if cpu else {})}
    environment |= {} if sys.stderr.isatty() else _NO_PROGRESS_BARS
    environment |= allocator() if cpu or _gpus() == 0 else {}
    arguments = [str(script), *words]
    if processes is None and not cpu and _accelerate_is_configured():
        return [*_ACCELERATE, *arguments], environment
    count = processes or (1 if cpu else max(1, _gpus()))
    if count == 1:
        return [sys.executable, *arguments], environment
    if cpu or _gpus() == 0:
        from guided_diffusers.store.launch import launcher  # imports torch

        return [*launcher(count), *arguments], environment
    plain = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*_ACCELERATE, *plain, "--num_processes", str(count), *arguments], environment


def allocator() -> dict[str, str]:
    """The environment that gives a run on a CPU a faster allocator of memory, where one is installed.

    Not where LD_PRELOAD is set, to whatever, the empty text included.
    """
    if "LD_PRELOAD" in os.environ or not sys.platform.startswith("linux"):
        return {}
    places = (Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu"))
    found = (file for name in _ALLOCATORS for place in places for file in sorted(place.glob(f"{name}.so.*")))
    library = next(found, None)
    if library is None:
        return {}
    print(f"memory by {library.name} (LD_PRELOAD; set it empty to do without)", file=sys.stderr)
    return {"LD_PRELOAD": str(library)}


_ALLOCATORS = ("libtcmalloc_minimal", "libtcmalloc", "libjemalloc")
_NO_PROGRESS_BARS = dict.fromkeys(
    ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"), "1"
)
_ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]


def _accelerate_is_configured() -> bool:
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).is_file()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def run(command: list[str], environment: dict[str, str], output: Any = None) -> int:
    """Runs it, its standard output to `output` if given; the exit code, 128 + n if signal n ended it.

    Ctrl-C reaches the run from the terminal as it reaches this process, which waits for it; where it did not
    (the signal was sent to this process alone), it is passed on after a while. SIGTERM is passed on at once.
    Neither may raise here: an exception just when the run has ended would lose its exit code.
    """
    process = subprocess.Popen(command, env=environment, stdout=output)
    later = threading.Timer(_SECONDS_TO_STOP, process.send_signal, [signal.SIGINT])
    later.daemon = True
    handlers = {
        signal.SIGINT: lambda *_: later.ident or later.start(),
        signal.SIGTERM: lambda *_: process.send_signal(signal.SIGTERM),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = process.wait()
    finally:
        later.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def result(words: Sequence[str]) -> dict[str, Any]:
    """What a run left: its folder, the trained model in it, and the last record of its log."""
    from guided_diffusers.hub import inventory

    folder = output_folder(words)
    final, log, content = folder / "final", folder / "log.jsonl", {}
    if final.is_dir():
        with contextlib.suppress(OSError):  # CLIP's final is transformers', and has no class of diffusers
            content = inventory(final)
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return {
        "output_dir": str(folder),
        "final": str(final) if final.is_dir() else None,
        "class": content.get("class"),
        "parameters": content.get("parameters"),
        "log": json.loads(lines[-1]) if lines else None,
    }


def output_folder(words: Sequence[str]) -> Path:
    """The run's folder, as the script takes it from its configuration and options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--training.output_dir", "--output_dir", dest="folder")
    given, _ = parser.parse_known_args(list(words))
    if given.folder is not None:
        return Path(given.folder)
    from guided_diffusers.store.reading import read_mapping

    return Path(str(read_mapping(given.config)["training"]["output_dir"]))
