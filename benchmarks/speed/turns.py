"""Training scripts that run in turns: each works for a while as the other stands still.

What drifts (clock frequency, a neighbour's load) meets both alike, and each has a process, an allocator and
loaders of its own. Both begin, one after the other, before the first turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import PairedTimes

BEGIN_S = 300.0
"""Seconds within which a script has to have done its first steps."""


@dataclass(frozen=True)
class Turn:
    """When a script worked, in seconds of the clock of `time.monotonic`."""

    start: float
    end: float


class Script:
    """A training script in processes of its own, stopped unless it is its turn.

    Args:
        name: for messages.
        command: by which instrumented.py writes `timings`.
        environment: of the processes.
        timings: the lines of stopwatch.py.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], timings: Path
    ) -> None:
        self.name, self.timings, self.turns = name, timings, []
        self._errors = timings.with_suffix(".log")
        with self._errors.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def begin(self, steps: int) -> None:
        """Let it work until it has done so many steps, and stand still."""
        deadline = time.monotonic() + BEGIN_S
        while not self.timings.is_file() or self.timings.read_text().count("\n") < steps:
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self._errors.read_text()[-4000:]
                raise SystemExit(f"{self.name} has done no {steps} steps in {BEGIN_S:.0f} s:\n{text}")
            time.sleep(0.2)
        self._signal(signal.SIGSTOP)

    def work(self, seconds: float) -> None:
        """Have a turn."""
        start = time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        self.turns.append(Turn(start, time.monotonic()))
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} has ended:\n{self._errors.read_text()[-4000:]}")

    def end(self) -> None:
        """Be done with it."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()

    def steps(self) -> list[dict[str, Any]]:
        """The lines of its steps."""
        return [json.loads(line) for line in self.timings.read_text().splitlines()]

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)


@contextlib.contextmanager
def in_turns(scripts: Sequence[Script]) -> Iterator[None]:
    """End all of them, whatever happens to this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        yield
    finally:
        for script in scripts:
            script.end()


def whole_steps(steps: Sequence[Mapping[str, Any]], turn: Turn) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each step that lies in a turn from its begin to its end, and their parts."""
    ended = [step for step in steps if turn.start <= step["end"] <= turn.end]
    seconds = [after["end"] - before["end"] for before, after in zip(ended, ended[1:], strict=False)]
    return seconds, [step["parts"] for step in ended[1:]]


def step_pairs(first: Script, second: Script) -> PairedTimes:
    """A pair a turn of both: their mean seconds a step.

    Raises:
        SystemExit: a turn in which no step lies.
    """
    means: list[list[float]] = []
    for script in (first, second):
        steps, means = script.steps(), [*means, []]
        for turn in script.turns:
            seconds, _ = whole_steps(steps, turn)
            if not seconds:
                raise SystemExit(f"a step of {script.name} takes longer than half a turn: --turn-seconds")
            means[-1].append(sum(seconds) / len(seconds))
    return PairedTimes(first_s=means[0], second_s=means[1])
