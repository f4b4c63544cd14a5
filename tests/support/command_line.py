"""The command line, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from guided_diffusers.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Takes words; gives exit code, standard output and standard error."""


def runner(monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], *command: str) -> Run:
    """Runs `guided-diffusers`, with `command` before the words of each call."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guided-diffusers", *command, *map(str, words)])
        captured.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = captured.readouterr()
        return ended.value.code or 0, output, errors

    return run
