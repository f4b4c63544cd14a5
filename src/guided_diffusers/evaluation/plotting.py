"""Figures of matplotlib, an extra (`pip install guided-diffusers[eval]`), imported when one is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from guided_diffusers.store.files import write_atomically


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, on no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_image(figure: Any) -> Image.Image:
    """The figure as an RGB image."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file).convert("RGB")


def write_figure(figure: Any, path: Path) -> Path:
    """The path of the PNG file that the figure is written to."""
    write_atomically(path, lambda at: figure.savefig(at, format="png", dpi=110))
    return path
