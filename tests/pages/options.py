"""Whether a command would be understood: its options go to the tool's own parser, and nothing is done.

For a temporary current folder: files that a parser asks for are made there, empty.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from pages.blocks import ROOT


class Parsed(Exception):
    """A script has parsed its command line, and is stopped there."""


def words_of(command: str) -> list[str]:
    """The words of a command without assignments to the environment before it."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def check(command: str) -> None:
    """Raise AssertionError, or what the parser itself raises, for a command with a wrong option."""
    tool, *words = words_of(command)
    checks = {
        "accelerate": _accelerate,
        "guided-diffusers": _guided_diffusers,
        "make": _make,
        "pip": _pip,
        "python": _python,
        "torchrun": _torchrun,
    }
    assert tool in checks, f"nothing knows how to check `{tool}`"
    checks[tool](words)


def _guided_diffusers(words: list[str]) -> None:
    from typer.main import get_command

    from guided_diffusers.cli import app

    name, *rest = words
    commands = get_command(app).commands
    assert name in commands, f"guided-diffusers has no command {name}; it has {', '.join(commands)}"
    if name == "train":
        return _python([f"training/train_{rest[0].replace('-', '_')}.py", *rest[1:]])
    while True:
        try:
            commands[name].make_context(name, list(rest))
            return None
        except typer.BadParameter as error:
            if not _made(error.message):
                raise


def _made(message: str) -> bool:
    """Make what an error says does not exist: an earlier command would have made it."""
    found = re.fullmatch(r"(\w+) '([^']+)' does not exist\.", message)
    if found is None or Path(found[2]).exists():
        return False
    path = Path(found[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if found[1].lower() == "file" else path.mkdir()
    return True


def _make(words: list[str]) -> None:
    ended = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def _pip(words: list[str]) -> None:
    assert words[0] == "install" and len(words) == 2, words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[1])
    assert found, f"{words[1]} is not this package"
    named = set((found[1] or "").split(",")) - {""}
    assert named <= set(extras), f"{found[1]}: the extras are {', '.join(extras)}"


def _accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    parsed = launch_command_parser().parse_args(words[1:])
    _launched(parsed.training_script, parsed.training_script_args, parsed.module)


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words)
    _launched(parsed.training_script, parsed.training_script_args, parsed.module)


def _launched(program: str, words: list[str], module: bool) -> None:
    if not module:
        return _python([program, *words])
    assert program == "guided_diffusers", program
    _guided_diffusers(words)


def _python(words: list[str]) -> None:
    """A script of ours, up to the point where its command line is parsed."""
    script, *rest = words
    assert Path(script).is_file(), f"there is no {script}"
    if "/train_" in script:
        rest = [*rest, "--dry_run"]
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: Any, *arguments: Any, **more: Any) -> Any:
        parse(parser, *arguments, **more)
        raise Parsed

    path = [str(Path(script).parent), *sys.path]
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        mock.patch.object(sys, "argv", [script, *rest]),
        mock.patch.object(sys, "path", path),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except Parsed:
            return
        except SystemExit as ended:
            assert not ended.code, f"{shlex.join(words)} ends with {ended.code}"
            return
    raise AssertionError(f"{script} did not parse its command line")
