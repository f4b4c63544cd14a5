"""What a command answers: lines for people, or with --json one JSON object and nothing else."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer


def answering(command: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """A command that returns its record, as one that prints it with --json.

    While it works with --json, whatever is printed goes to standard error, a library's talk too. A process
    that has nothing to say (not the main one of several) returns None.
    """

    @wraps(command)
    def answer(**arguments: Any) -> None:
        if not arguments["json_output"]:
            command(**arguments)
            return
        with contextlib.redirect_stdout(sys.stderr):
            record = command(**arguments)
        if record is not None:
            typer.echo(to_json(record))

    return answer


def to_json(record: dict[str, Any]) -> str:
    """Indented JSON; what JSON has no number for (NaN, infinity) is null."""
    return json.dumps(_plain(record), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
