"""Reads pages as somebody at a desk would: `python -m pages.play [--commands] RESULTS PAGE...`.

In a fresh process and the current folder, each page's Python runs in one namespace, its YAML becomes files
and, with --commands, its commands are typed into a shell. RESULTS is a JSON file: for each
page what went wrong, null for nothing, and how long its Python took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

from pages.blocks import Block, blocks_of
from pages.declared import EXPECTED, name_of, replaced, shorter, why_not_typed

SECONDS = 600


def play(page: Path, commands: bool) -> dict[str, Any]:
    """What went wrong on a page, and the seconds of the processor that its Python took."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    began, error = time.process_time(), None
    try:
        for block in blocks_of(page):
            play_block(block, page, scope, commands)
        for expression in EXPECTED.get(name_of(page), ()):
            assert eval(expression, scope), f"after {page.name} it does not hold that {expression}"
    except BaseException:
        error = traceback.format_exc()
    return {"error": error, "seconds": round(time.process_time() - began, 1)}


def play_block(block: Block, page: Path, scope: dict[str, Any], commands: bool) -> None:
    """Run one block."""
    if block.language == "python":
        # Empty lines before it, so that a traceback has the page's own line numbers.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
        exec(code, scope)
    elif block.language == "yaml":
        assert block.file is not None, f"{page.name}, line {block.line}: the first line names no file"
        Path(block.file).write_text(replaced(block.code))
    elif block.language == "json":
        from guided_diffusers.hub import CardFacts

        CardFacts.of(json.loads(block.code))
    elif commands:
        for command in block.commands:
            if why_not_typed(command) is None:
                type_in(shorter(command), f"{page.name}, line {block.line}")


def type_in(command: str, where: str) -> None:
    """Type a command into a shell; AssertionError with the end of what it said, if it fails."""
    began = time.perf_counter()
    shell = ["bash", "-euo", "pipefail", "-c", command]
    ended = subprocess.run(shell, capture_output=True, text=True, timeout=SECONDS)
    print(f"{time.perf_counter() - began:.0f} s: {command}", flush=True)
    said = (ended.stdout + ended.stderr)[-3000:]
    assert ended.returncode == 0, f"{where}: $ {command}\n{said}"


def main() -> None:
    """Parse the command line, play the pages, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", action="store_true", help="type the commands too")
    parser.add_argument("--furnish", action="store_true", help="put untrained networks where training would")
    parser.add_argument("results", type=Path)
    parser.add_argument("pages", type=Path, nargs="+")
    arguments = parser.parse_args()
    from pages.desk import furnish, publish

    publish(Path.cwd())
    if arguments.furnish:
        furnish(Path.cwd())
    results = {name_of(page): play(page, arguments.commands) for page in arguments.pages}
    arguments.results.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
