"""`guided-diffusers report`: a run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[Path, typer.Argument(help="A run's folder, of a run in progress too.")]
Out = Annotated[Path | None, typer.Option(help="The file to write.", show_default="RUN/report.html")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def report(run: Run, out: Out = None, json_output: Json = False) -> dict[str, Any]:
    """Write a run's page: one HTML file with curves, pictures in time, speed and configuration.

    It stands alone: no other files, no scripts, nothing from the network.
    """
    from guided_diffusers.store.files import write_atomically
    from guided_diffusers.training.engine.report import report as page

    out, content = out or run / "report.html", page(run).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda at: at.write_bytes(content))
    if not json_output:
        typer.echo(f"{out}: {len(content) / 1e6:.1f} MB")
    return {"file": str(out), "bytes": len(content)}
