"""Fresh processes that print what they found, as JSON after RESULT."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from hub.loopback import Hub


def start(environment: dict[str, str], *words: object) -> subprocess.Popen[str]:
    """Python, with these words after it."""
    line, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
    return subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True)


def start_client(hub: Hub, home: Any, *words: object, **environment: Any) -> subprocess.Popen[str]:
    """A function of `clients`, with its arguments."""
    return start(hub.environment(home, **environment), "-m", "hub.clients", *words)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it found, and what it said on standard error."""
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, output + errors[-4000:]
    return {**json.loads(output.split("RESULT ")[1]), "stderr": errors}
